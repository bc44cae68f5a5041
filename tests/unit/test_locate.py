"""Where a checkpoint may lie, and how long it is waited for."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from grit_runtime import locate
from grit_runtime.checks import Refusal
from grit_runtime.settings import Restore


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locate, "OWNER", os.getuid())
    monkeypatch.setattr("grit_runtime.layer.unpacking.UNPACKED", str(tmp_path / "unpacked"))
    root = tmp_path / "grit"
    root.mkdir(mode=0o755)
    return root


def make(images: Path, manifest: bool = True) -> Path:
    images.mkdir(parents=True)
    (images / "inventory.img").write_bytes(b"image")
    if manifest:
        (images / "grit.json").write_text("{}")
    return images


def find(root: Path, path: object, name: str | None = "app", wait: int = 0) -> locate.Checkpoint:
    with locate.find(str(path), name, Restore(roots=("/nowhere", str(root)), wait=wait)) as found:
        return found


def test_every_layout(root: Path) -> None:
    images = make(root / "pod/app/checkpoint")
    (root / "pod/app/rootfs-diff.tar").touch()
    (images / "shm.tar").touch()
    expected = (str(images), str(root / "pod/app"), str(root / "pod/app/rootfs-diff.tar"), str(images / "shm.tar"))
    assert find(root, root / "pod") == find(root, root / "pod/app") == find(root, f"{images}//") == expected
    flat = make(root / "flat")
    assert find(root, flat, None) == (str(flat), str(flat), None, None)
    make(root / "odd/checkpoint/checkpoint")
    assert find(root, root / "odd", "checkpoint").base == str(root / "odd/checkpoint")


@pytest.mark.parametrize("path", ["pod", "{root}/../grit/pod", "{root}/./pod", "{root}/a\nb", ""])
def test_paths_that_are_none(root: Path, path: str) -> None:
    with pytest.raises(Refusal, match="checkpoint-path-invalid"):
        find(root, path.format(root=root))


def test_outside_of_the_roots(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "grit-too/app/checkpoint")
    for path in (tmp_path / "grit-too", tmp_path, "/", "/etc"):
        with pytest.raises(Refusal, match="checkpoint-path-outside"):
            find(root, path)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b"])
def test_container_names_that_are_no_folder(root: Path, name: str) -> None:
    make(root / "pod/checkpoint")
    with pytest.raises(Refusal, match="container-name-invalid"):
        find(root, root / "pod", name)


def test_only_what_root_alone_can_change(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make(root / "pod/app/checkpoint")
    for path in (root, root / "pod", root / "pod/app", images, images / "inventory.img", images / "grit.json"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(Refusal, match="checkpoint-path-unsafe"):
            find(root, root / "pod")
        path.chmod(mode)
    outside = make(tmp_path / "outside/app/checkpoint")
    for link in (root / "link", images / "pages-1.img", root / "pod/app/rootfs-diff.tar"):
        link.symlink_to(outside.parent.parent if link.parent == root else outside / "inventory.img")
        with pytest.raises(Refusal, match="checkpoint-path-unsafe"):
            find(root, root / ("link" if link.parent == root else "pod"))
        link.unlink()
    os.mkfifo(images / "pages-1.img", 0o600)
    with pytest.raises(Refusal, match="checkpoint-path-unsafe"):
        find(root, root / "pod")
    (images / "pages-1.img").unlink()
    os.rename(root / "pod/app", root / "pod/real")
    (root / "pod/app").symlink_to("real")
    with pytest.raises(Refusal, match="checkpoint-path-unsafe"):
        find(root, root / "pod")
    (root / "pod/app").unlink()
    os.rename(root / "pod/real", root / "pod/app")
    assert find(root, root / "pod")
    monkeypatch.setattr(locate, "OWNER", os.getuid() + 1)
    with pytest.raises(Refusal, match="owner"):
        find(root, root / "pod")


def test_files_that_the_manifest_names_are_waited_for(root: Path) -> None:
    """A copy without a sentinel that brings the manifest before the rest; and one that has stopped half-way."""
    now = 0.0
    steps = ["half", "whole", "layer"]
    images = make(root / "pod/app/checkpoint")
    files = {"pages-1.img": {"size": 8}, "rootfs-diff.tar": {"size": 8}, "../x": {"size": 1}, "odd": 7}
    whole = {"format": 1, "node": dict.fromkeys(("kernel", "arch", "cpu", "criu", "runtime"), "")}
    whole.update({"container": {}, "files": files, "mounts": [], "watches": {}, "fingerprints": {}, "gpu": {}})
    (images / "odd").touch()
    (images / "x").write_text("x")

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        step = steps.pop(0) if steps else ""
        if step == "half":
            (images / "grit.json").write_text(json.dumps(whole))
        if step in ("half", "whole"):
            (images / "pages-1.img").write_bytes(bytes(4 if step == "half" else 8))
        elif step == "layer":
            (root / "pod/app/rootfs-diff.tar").touch()

    def search() -> float:
        nonlocal now
        before = now
        restore = Restore(roots=(str(root),), wait=100)
        with locate.find(str(root / "pod"), "app", restore, sleep=sleep, clock=lambda: now) as found:
            assert found.images == str(images)
        return now - before

    (images / "grit.json").write_text('{"format": 1, ')
    assert search() < 2 and not steps
    (images / "pages-1.img").write_bytes(bytes(4))
    assert 3 <= search() < 5, "it does not grow any more: the restore says what is wrong"
    (root / "pod/download-state").touch()
    assert search() == 0


def test_what_is_missing_is_waited_for(root: Path) -> None:
    """Each step of the copy in turn; nothing counts before the manifest or the sentinel."""
    now = 0.0
    steps = ["folder", "images", "nothing", "sentinel"]

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        step = steps.pop(0) if steps else ""
        if step == "folder":
            (root / "pod").mkdir()
        elif step == "images":
            make(root / "pod/app/checkpoint", manifest=False)
        elif step == "sentinel":
            (root / "pod/download-state").touch()

    with locate.find(
        str(root / "pod"), "app", Restore(roots=(str(root),), wait=100), sleep=sleep, clock=lambda: now
    ) as found:
        assert not steps and found.images.endswith("pod/app/checkpoint") and now < 2
    with (
        pytest.raises(Refusal, match="download-timeout"),
        locate.find(str(root / "no"), "app", Restore(roots=(str(root),), wait=3), sleep=sleep, clock=lambda: now),
    ):
        pass
    assert 3 <= now < 5
    with pytest.raises(Refusal, match="checkpoint-not-found"):  # all has arrived, but nothing for this container
        find(root, root / "pod", "other", wait=100)
    with pytest.raises(Refusal, match="checkpoint-not-found"):
        find(root, root / "no")


def archive(path: Path, *names: str, link: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.mode = 0o777
            tar.addfile(info)
        if link:
            info = tarfile.TarInfo("checkpoint/pages-1.img")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)


def test_an_archive_of_cri(root: Path, tmp_path: Path) -> None:
    path = root / "checkpoint-pod.tar"
    archive(path, "checkpoint/inventory.img", "checkpoint/grit.json", "rootfs-diff.tar", "config.dump")
    left = tmp_path / "unpacked/left-behind"
    left.mkdir(parents=True)
    with locate.find(str(path), "app", Restore(roots=(str(root),))) as found:
        assert not left.exists(), "nobody holds it"
        assert found.layer == f"{found.base}/rootfs-diff.tar" and os.path.isfile(f"{found.images}/inventory.img")
        assert os.stat(found.base).st_mode & 0o777 == 0o700 and os.stat(found.layer).st_mode & 0o777 == 0o600
        with locate.find(str(path), "app", Restore(roots=(str(root),))) as second:
            assert os.path.exists(found.images) and second.base != found.base
        assert os.listdir(tmp_path / "unpacked") == [os.path.basename(found.base)]
    assert not os.listdir(tmp_path / "unpacked")
    archive(path, "checkpoint/inventory.img", "checkpoint/rootfs-diff.tar", "rootfs-diff.tar")
    with locate.find(str(path), "app", Restore(roots=(str(root),))) as found:
        assert found.layer == f"{found.images}/rootfs-diff.tar", "ours, which has CRIU's own names in it"
    for bad in ({"names": ["../x"]}, {"names": ["/x"]}, {"link": "/etc/shadow"}):
        archive(path, "checkpoint/inventory.img", *bad.get("names", []), link=str(bad.get("link", "")))
        with pytest.raises(Refusal, match="checkpoint-archive-unreadable"):
            find(root, path)
        assert not os.listdir(tmp_path / "unpacked") and not (tmp_path / "x").exists()
    archive(path, "else")
    with pytest.raises(Refusal, match="checkpoint-not-found"):
        find(root, path)


def test_the_folder_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make(tmp_path / "app/checkpoint")
    (tmp_path / "app/rootfs-diff.tar").touch()
    monkeypatch.chdir(tmp_path / "app")
    with locate.folder("checkpoint") as found:
        assert found == (str(images), str(tmp_path / "app"), str(tmp_path / "app/rootfs-diff.tar"), None)
