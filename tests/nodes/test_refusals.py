"""What is refused before CRIU starts, by the name that the issue and the documentation know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from grit_runtime import manifest

from tests.nodes.moving import Bundle, Spec, changed, images, nothing_remains, reason
from tests.nodes.origin import Copy, Origin
from tests.testbed import CommandFailed
from tests.testbed.driver import VERSION

CONFIG = "/etc/grit-runtime/config.toml"


def test_the_checkpoint_itself_is_good(origin: Origin) -> None:
    with origin.bundle() as one:
        one.restore(images(origin.id))
        assert one.ask()["bad"] == []
        # a second container of the same name is refused, and the first one isn't touched
        done = one.restore(images(origin.id), check=False)
        assert reason(done.stderr) == "container-exists" and one.ask()["bad"] == []


def without_extra(spec: Spec) -> None:
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/extra"]


def test_mount_that_the_live_spec_lacks(origin: Origin) -> None:
    with origin.bundle(without_extra) as one:
        assert origin.refused(one, images(origin.id)) == "mount-missing"
        text = origin.node.path(CONFIG).read_text()
        with changed(origin.node, CONFIG, text.replace("optional_mounts = [", 'optional_mounts = ["/ext*", ')):
            one.restore(images(origin.id))
        assert one.ask()["bad"] == []
        # what stands in its place is empty, and no way from one container to another
        place = origin.node.path(f"/proc/{one.pid}/root/extra")
        assert os.listdir(place) == []
        with pytest.raises(OSError):
            (place / "new").write_text("")


def node_says(**facts: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["node"].update(facts)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (node_says(criu="99.1"), "criu-older"),
        (node_says(arch="riscv64"), "arch-mismatch"),
        (node_says(cpu="fpu no_such_feature"), "cpu-mismatch"),
        (node_says(runtime="crun"), "runtime-differs"),
        (lambda content: content.update(format=manifest.FORMAT + 1), "manifest-future"),
        (lambda content: content["container"].update(terminal=True), "terminal-needs-console"),
    ],
)
def test_manifest_from_elsewhere(
    origin: Origin, plain: Bundle, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    copy = origin.copy()
    copy.manifest(edit)
    assert origin.refused(plain, copy.images) == expected


def shorter(copy: Copy, pattern: str) -> None:
    place = max(copy.node.path(copy.images).glob(pattern), key=lambda path: path.stat().st_size)
    os.truncate(place, place.stat().st_size // 2)


@pytest.mark.parametrize("pattern", ["pages-*.img", "core-1.img", "mountpoints-*.img", "files.img"])
def test_truncated_image(origin: Origin, plain: Bundle, pattern: str) -> None:
    copy = origin.copy()
    shorter(copy, pattern)
    assert origin.refused(plain, copy.images) == "image-changed"
    copy.agree()  # a manifest that was made of the short files doesn't help
    assert origin.refused(plain, copy.images) == "image-truncated"


def test_missing_parts(origin: Origin, plain: Bundle) -> None:
    copy = origin.copy()
    copy.path("core-1.img").unlink()
    assert origin.refused(plain, copy.images) == "image-changed"
    copy.manifest(lambda content: content["files"].pop("core-1.img"))
    assert origin.refused(plain, copy.images) == "image-missing"
    copy.path("grit.json").unlink()
    assert origin.refused(plain, copy.images) == "manifest-missing"
    assert origin.refused(plain, "/var/lib/grit/there-is-none") == "manifest-missing"


def test_driver_file_of_other_content(origin: Origin, plain: Bundle) -> None:
    """CRIU compares a mapped file's size only: so one of the same size must be told by us."""
    node = origin.node
    driver = f"{node.recipe.driver}/libcuda.so.{VERSION}"
    text = node.path(driver).read_text()
    with changed(node, driver, text.replace("driver", "DRIVER")):
        assert len(text) == node.path(driver).stat().st_size
        assert origin.refused(plain, images(origin.id)) == "file-differs"


def test_program_of_other_content(origin: Origin) -> None:
    with origin.bundle() as one:
        program = origin.node.path(f"{one.path}/rootfs/usr/bin/python3")
        with open(program, "r+b") as file:
            file.seek(100_000)
            byte = file.read(1)
            file.seek(100_000)
            file.write(bytes([byte[0] ^ 1]))
        assert origin.refused(one, images(origin.id)) == "file-differs"
        program.unlink()
        assert origin.refused(one, images(origin.id)) == "file-missing"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/etc", "checkpoint-path-outside"), ("/var/lib/grit/../../etc", "checkpoint-path-invalid"),
     ("/var/lib/grit/there-is-none", "checkpoint-not-found")],
)  # fmt: skip
def test_annotation(origin: Origin, path: str, expected: str) -> None:
    """containerd shows the reason, and can make a container of that name afterwards."""
    node = origin.node
    text = node.path(CONFIG).read_text()
    with changed(node, CONFIG, text.replace("wait = 100", "wait = 0")):
        with pytest.raises(CommandFailed) as failure:
            node.start("unwanted", annotations={"grit.dev/checkpoint": path}, wait=False)
    assert reason(str(failure.value)) == expected
    nothing_remains(node, "unwanted", but=origin.container.pid)
    again = node.start("unwanted", image="busybox")
    again.delete()


def test_unwritable_image_folder(origin: Origin) -> None:
    """Refused before anything is done to the container."""
    node = origin.node
    before = origin.container.ask("counter")["counter"]
    node.run(["mkdir", "-p", "/run/read-only"])
    node.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/run/read-only"])
    try:
        with pytest.raises(CommandFailed) as failure:
            node.ctr("tasks", "checkpoint", "--image-path", "/run/read-only/images", origin.container.name)
        assert reason(str(failure.value)) == "images-unwritable"
    finally:
        node.run(["umount", "/run/read-only"])
    answer = origin.container.ask()
    assert answer["bad"] == [] and answer["counter"] > before
    nothing_remains(node, origin.id, lives=True)


def test_terminal_without_console(origin: Origin) -> None:
    """A live spec with a terminal, from a caller who has none to give."""

    def terminal(spec: Spec) -> None:
        spec["process"]["terminal"] = True

    copy = origin.copy()
    copy.manifest(lambda content: content["container"].update(terminal=True))
    with origin.bundle(terminal) as one:
        assert origin.refused(one, copy.images) == "terminal-needs-console"
        assert json.loads(origin.node.path(f"{one.path}/config.json").read_text())["process"]["terminal"]
