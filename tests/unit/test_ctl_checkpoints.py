"""gritctl diagnose, inspect and verify, on images that CRIU made."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from grit_runtime import manifest, records
from grit_runtime.ctl import checkpoints
from grit_runtime.ctl.main import main

from tests.unit import criu_images

LOG = """\
(00.000013) Version: 4.2.1 (gitid 0)
(00.001000) Running setup-namespaces scripts
(00.001703) Error (criu/mount.c:3141): mnt: No mapping for 104:(null) mountpoint
(00.003969) Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: No such file or directory
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """<base>/trainer/checkpoint, with a manifest, as the runtime leaves it."""
    home = tmp_path / "trainer"
    home.mkdir()
    os.rename(criu_images.copy("4.2.1", tmp_path), home / "checkpoint")
    images = str(home / "checkpoint")
    node = {**manifest.node(), "criu": "4.2.1", "runtime": "runc"}
    content = {"node": node, "container": {"id": "abc", "name": "trainer\x1b[31m"}, "mounts": [], "watches": {}}
    files = manifest.sums(images, os.listdir(images))
    made = {**content, "created": 1764096000.0, "files": files, "fingerprints": {}, "gpu": {}}
    manifest.write(images, made)
    return home


def run(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "\x1b" not in result.output
    shown = [line for line in result.output.splitlines() if not line.startswith("gritctl: ")]
    assert all(len(line) <= 80 for line in shown) or "--json" in words
    return result


def report(*words: object) -> Any:
    return json.loads(run(*words, "--json").output)


def test_diagnose_names_the_mount_that_criu_only_numbers(checkpoint: Path) -> None:
    (checkpoint / "checkpoint" / "restore.log").write_text(LOG)
    result = run("diagnose", checkpoint)
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "mount 104 of the image (/usr/lib/libcuda.so.570.10)" in text
    assert "mount-unmapped" in text and "last stage setup-namespaces" in text
    (found,) = report("diagnose", checkpoint)["logs"]
    assert [cause["reason"] for cause in found["causes"]] == ["mount-unmapped"]
    assert found["evidence"] == [
        {"line": 3, "seconds": 0.001703, "text": "Error (criu/mount.c:3141): mnt: No mapping for 104:(null) mountpoint"}
    ]


def test_diagnose_takes_a_log_and_its_images_apart_from_each_other(checkpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "elsewhere.log"
    log.write_text(LOG)
    assert "libcuda" not in run("diagnose", log).output
    assert "libcuda" in run("diagnose", log, "--images", checkpoint / "checkpoint").output


def test_diagnose_of_what_nobody_knows_shows_the_lines(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(0.1) Error (criu/new.c:7): new: \x1b]0;owned\x07 moon\n")
    result = run("diagnose", log)
    assert result.exit_code == 2
    assert "\\x1b]0;owned" in result.output and "report" in result.output


def test_diagnose_of_images_and_of_a_success(checkpoint: Path) -> None:
    assert run("diagnose", checkpoint).exit_code == 0
    (checkpoint / "checkpoint" / "mm-7.img").unlink()
    assert "image-missing" in run("diagnose", checkpoint).output
    (checkpoint / "checkpoint" / "dump.log").write_text("(0.1) Version: 4.2.1\n(0.2) Dumping finished successfully\n")
    assert run("diagnose", checkpoint).exit_code == 0


def test_diagnose_of_a_success_tells_only_what_makes_it_doubtful(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    start = "(0.1) Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 164 (Operation not permitted)\n"
    end = "(0.2) Dumping finished successfully\n"
    log.write_text(start + end)
    assert run("diagnose", log).exit_code == 0
    log.write_text(start + "(0.1) cuda_plugin: No GPU device found; CUDA plugin is disabled\n" + end)
    assert [cause["reason"] for cause in report("diagnose", log)["logs"][0]["causes"]] == ["gpu-plugin-off"]


def test_diagnose_finds_the_kept_logs_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "logs" / "abc123" / "20261125T184501.123456Z-restore"
    kept.mkdir(parents=True)
    (kept / "restore.log").write_text(LOG)
    (kept / "record.json").write_text('{"operation": "restore", "result": "failed"}')
    listing = records.listing
    monkeypatch.setattr(records, "listing", lambda container: listing(container, str(tmp_path)))
    assert "mount-unmapped" in run("diagnose", "abc").output
    assert run("diagnose", "xyz").exit_code == 1


@pytest.mark.parametrize("version", criu_images.VERSIONS)
def test_inspect_shows_the_tree(version: str, tmp_path: Path) -> None:
    folder = criu_images.copy(version, tmp_path)
    result = run("inspect", folder)
    assert result.exit_code == 0
    for part in ("old-pod", "1 /bin/busybox", "external: ", "/etc/hosts (tmpfs)", "masked: /proc/",
                 "/tmp/gone (deleted, ghost, 5 B)", "memory: ", "whole"):  # fmt: skip
        assert part in result.output
    found = report("inspect", folder)
    assert found["kind"] == "inspect" and found["problems"] == [] and found["manifest"] is None
    assert found["processes"][0]["seccomp"] == "filter"


def test_inspect_makes_names_from_the_checkpoint_visible(checkpoint: Path) -> None:
    result = run("inspect", checkpoint)
    assert "trainer\\x1b[31m" in result.output
    assert "2025-11-25 18:40:00 UTC" in result.output


def test_inspect_reads_an_archive_and_takes_nothing_else_out_of_it(checkpoint: Path, tmp_path: Path) -> None:
    archive = tmp_path / "export.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("/etc/evil", "../../evil", "checkpoint/../../evil.img", "other/mm-7.img"):
            info = tarfile.TarInfo(name)
            info.size = 0
            tar.addfile(info)
        link = tarfile.TarInfo("checkpoint/mm-7.img")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(link)
        tar.add(checkpoint, arcname=".")
    found = report("inspect", archive)
    assert found["archive"] and found["problems"] == []
    assert [process["pid"] for process in found["processes"]] == [1, 7, 8]
    target = tmp_path / "out"
    target.mkdir()
    checkpoints.unpack(str(archive), str(target))
    assert sorted(os.listdir(target)) == ["checkpoint"]
    assert not any(os.path.islink(target / "checkpoint" / name) for name in os.listdir(target / "checkpoint"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export.tar.gz", "out", "trainer"]


def test_inspect_says_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "checkpoint" / "pstree.img").unlink()
    result = run("inspect", checkpoint)
    assert result.exit_code == 1
    assert "image-missing" in result.output and "/etc/hosts" in result.output
    assert run("inspect", tmp_path).exit_code == 1


def levels(result: Any) -> dict[str, str]:
    return {gate["reason"] or gate["name"]: gate["level"] for gate in result["gates"]}


def test_verify_opens_every_gate_of_a_whole_checkpoint(checkpoint: Path) -> None:
    found = report("verify", checkpoint)
    assert found["ok"] and set(levels(found).values()) == {"ok"}
    assert run("verify", checkpoint).exit_code == 0


def test_verify_finds_one_changed_byte_and_an_added_image(checkpoint: Path) -> None:
    path = checkpoint / "checkpoint" / "pages-1.img"
    with open(path, "r+b") as file:
        file.seek(30000)
        file.write(b"x")
    (checkpoint / "checkpoint" / "zz.img").write_bytes(b"")
    result = run("verify", checkpoint)
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "its content is another" in text and "zz.img" in text and "it was added later" in text
    allowed = report("verify", checkpoint, "--allow", "image-changed")
    assert allowed["ok"] and levels(allowed)["image-changed"] == "allowed"


def test_verify_of_cut_images_and_of_none(checkpoint: Path, tmp_path: Path) -> None:
    os.truncate(checkpoint / "checkpoint" / "pages-2.img", 4096)
    assert levels(report("verify", checkpoint))["image-truncated"] == "bad"
    (checkpoint / "checkpoint" / "grit.json").unlink()
    assert levels(report("verify", checkpoint))["manifest-missing"] == "bad"
    assert run("verify", tmp_path).exit_code == 1
    assert run("verify", checkpoint, "--allow", "no-such-reason").exit_code == 2


def test_verify_follows_the_rootfs_changes_beside_the_images(checkpoint: Path) -> None:
    images = checkpoint / "checkpoint"
    (images / "rootfs-diff.tar").write_bytes(b"layer")
    made = manifest.read(str(images))
    manifest.write(str(images), {**made, "files": {**made["files"], **manifest.sums(str(images), ["rootfs-diff.tar"])}})
    os.rename(images / "rootfs-diff.tar", checkpoint / "rootfs-diff.tar")
    assert report("verify", checkpoint)["ok"]
    (checkpoint / "rootfs-diff.tar").write_bytes(b"other")
    assert levels(report("verify", checkpoint))["image-changed"] == "bad"


def test_verify_calls_an_incremental_image_by_its_name(checkpoint: Path) -> None:
    (checkpoint / "checkpoint" / "parent").symlink_to("/var/lib/other")
    assert levels(report("verify", checkpoint))["image-incremental"] == "bad"
