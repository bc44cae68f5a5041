"""Checkpoints that an attacker edited: refused by name, or confined to the container."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from grit_runtime.criu import imagefile
from grit_runtime.criu.protobuf import Message

from tests.nodes.moving import Bundle, Spec, images, record
from tests.nodes.origin import Copy, Origin


def inner(message: Message, path: list[int], change: Callable[[Message], Message]) -> Message:
    """`message` with the message at `path` (field numbers) changed."""
    if not path:
        return change(message)
    part = message.message(path[0])
    assert part is not None
    return message.replaced(path[0], inner(part, path[1:], change).encode())


def rewrite(copy: Copy, pattern: str, change: Callable[[Message], Message | None]) -> None:
    place = copy.find(pattern)
    imagefile.rewrite(place, place, change)
    copy.agree()


def credentials(copy: Copy, field: int, value: int) -> None:
    """core-1.img: thread_core (5), creds (10); fields as in CRIU's creds.proto."""
    rewrite(copy, "core-1.img", lambda core: inner(core, [5, 10], lambda creds: creds.replaced(field, value)))


@pytest.mark.parametrize("field", [9, 10, 11, 12, 19])
def test_more_capabilities(origin: Origin, plain: Bundle, field: int) -> None:
    copy = origin.copy()
    credentials(copy, field, 0xFFFFFFFF)
    assert origin.refused(plain, copy.images) == "privilege-raised"


def test_no_new_privs_given_up(origin: Origin, plain: Bundle) -> None:
    copy = origin.copy()
    credentials(copy, 18, 0)
    assert origin.refused(plain, copy.images) == "privilege-raised"


def test_no_filter_where_the_spec_has_one(origin: Origin) -> None:
    def filtered(spec: Spec) -> None:
        spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}

    with origin.bundle(filtered) as one:
        assert origin.refused(one, images(origin.id)) == "privilege-raised"


@pytest.mark.parametrize("field", [5, 6, 7, 8, 9])
def test_task_outside_its_namespaces(origin: Origin, plain: Bundle, field: int) -> None:
    """ids-1.img says that the task lived in CRIU's own namespace, which is the node's."""
    copy = origin.copy()
    inventory = imagefile.first(copy.path("inventory.img")).message(3)
    assert inventory is not None
    rewrite(copy, "ids-1.img", lambda ids: ids.replaced(field, inventory.integer(field)))
    assert origin.refused(plain, copy.images) in ("outside-namespaces", "image-missing")


def mount_at(point: str, change: Callable[[Message], Message]) -> Callable[[Message], Message]:
    """mnt.proto: mountpoint (7)."""
    return lambda entry: change(entry) if entry.text(7).rstrip("\0") == point else entry


def test_mount_of_a_file_that_the_spec_does_not_give(origin: Origin, plain: Bundle) -> None:
    copy = origin.copy()
    fields = _entry(copy, "/etc/hosts").fields
    key = next(field.number for field in fields if field.value == b"/etc/hosts" and field.number != 7)
    rewrite(copy, "mountpoints-*.img", mount_at("/etc/hosts", lambda entry: entry.replaced(key, b"/etc/shadow")))
    assert origin.refused(plain, copy.images) == "mount-missing"


def _entry(copy: Copy, point: str) -> Message:
    return next(entry for entry in imagefile.entries(copy.find("mountpoints-*.img")) if entry.text(7) == point)


def test_mount_of_a_kind_that_holds_the_nodes_things(origin: Origin, plain: Bundle) -> None:
    copy = origin.copy()
    rewrite(copy, "mountpoints-*.img", mount_at("/sys", lambda entry: entry.replaced(7, b"/elsewhere")))
    assert origin.refused(plain, copy.images) in ("mount-unexpected", "masks-differ")


def test_image_without_a_mask(origin: Origin) -> None:
    def masked(spec: Spec) -> None:
        spec["linux"]["maskedPaths"].append("/proc/version")

    with origin.bundle(masked) as one:
        assert origin.refused(one, images(origin.id)) == "masks-differ"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda content: content["files"].update({"/etc/shadow": {"size": 1}}), "image-changed"),
        (lambda content: content["files"].update({"../../x": {"size": 1}}), "image-changed"),
        (lambda content: content["files"]["core-1.img"].update(size=10**30), "image-changed"),
        (lambda content: content.update(format=10**300), "manifest-future"),
        (lambda content: content.update(mounts=["/etc"]), "manifest-broken"),
        (lambda content: content.update(external_files=[["/etc/shadow", "x", 1]]), "manifest-broken"),
        (lambda content: content["fingerprints"].update({"/../../../../etc/debian_version": "1:0"}), "file-missing"),
        (lambda content: content["watches"]["inotify"][0]["watches"][0].__setitem__(3, "/../../etc"),
         "watches-record-invalid"),
        (lambda content: content["watches"]["inotify"][0].update(next_wd=10**18), "watches-record-invalid"),
    ],
)  # fmt: skip
def test_manifest(origin: Origin, plain: Bundle, edit: Callable[[dict[str, Any]], object], expected: str) -> None:
    copy = origin.copy()
    copy.manifest(edit)
    assert origin.refused(plain, copy.images) == expected


def test_manifest_that_is_none(origin: Origin, plain: Bundle) -> None:
    copy = origin.copy()
    place = copy.path("grit.json")
    place.write_text("[" * 200_000)
    assert origin.refused(plain, copy.images) == "manifest-broken"
    place.unlink()
    place.symlink_to("/etc/passwd")
    assert origin.refused(plain, copy.images) == "manifest-broken"
    place.unlink()
    os.mkfifo(place)
    assert origin.refused(plain, copy.images) == "manifest-broken"


def test_link_in_place_of_an_image(origin: Origin, plain: Bundle) -> None:
    copy = origin.copy()
    copy.path("core-1.img").unlink()
    copy.path("core-1.img").symlink_to("/etc/shadow")
    assert origin.refused(plain, copy.images) == "image-changed"
    copy.manifest(lambda content: content["files"].pop("core-1.img"))
    assert origin.refused(plain, copy.images) == "image-missing"


@pytest.mark.parametrize("what", ["link", "owner", "writable"])
def test_folder_that_others_can_change(origin: Origin, what: str) -> None:
    """Below a configured root, where an annotation may point."""
    copy = origin.copy()
    place = copy.path("core-1.img")
    if what == "link":
        place.rename(copy.path("moved"))
        place.symlink_to("moved")
    elif what == "owner":
        os.chown(place, 1000, 1000)
    else:
        place.chmod(0o666)

    def wish(spec: Spec) -> None:
        spec.setdefault("annotations", {})["grit.dev/checkpoint"] = copy.base

    with origin.bundle(wish) as one:
        done = one.create(check=False)
        assert done.returncode == 1 and "checkpoint-path-unsafe" in done.stderr


def layer(copy: Copy, fill: Callable[[tarfile.TarFile], None]) -> None:
    """The rw layer with more in it."""
    place = copy.node.path(f"{copy.base}/rootfs-diff.tar")
    with tarfile.open(place, "a") as archive:
        fill(archive)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, target, 0o755
        info.size = 5 if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(b"evil\n"))

    return add


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../../../../../../../srv/evil")],
        [entry("/srv/evil")],
        [entry("way", tarfile.SYMTYPE, "/srv"), entry("way/evil")],
        [entry("way", tarfile.SYMTYPE, "../../../../../../../srv"), entry("way/evil")],
        [entry("evil", tarfile.LNKTYPE, "../../../../../../../etc/passwd")],
        [entry("way", tarfile.SYMTYPE, "/etc"), entry("evil", tarfile.LNKTYPE, "way/passwd")],
    ],
)
def test_layer_that_leads_out(origin: Origin, entries: list[Callable[[tarfile.TarFile], None]]) -> None:
    node = origin.node
    copy = origin.copy()

    def fill(archive: tarfile.TarFile) -> None:
        for add in entries:
            add(archive)

    layer(copy, fill)
    passwd = os.stat(node.path("/etc/passwd"))
    with origin.bundle() as one:
        done = one.restore(copy.images, check=False)
        assert not node.path("/srv/evil").exists() and not node.path("/evil").exists()
        after = os.stat(node.path("/etc/passwd"))
        assert (after.st_nlink, after.st_size, after.st_mtime) == (passwd.st_nlink, passwd.st_size, passwd.st_mtime)
        if done.returncode:
            assert "grit-runtime: layer-" in done.stderr, done.stderr
        else:
            assert one.ask()["bad"] == []


def test_watch_on_what_the_container_has_not(origin: Origin) -> None:
    """A path that is there on the node alone: the watch isn't set, the container goes on."""
    copy = origin.copy()
    origin.node.write("/srv/node-alone", "")

    def edit(content: dict[str, Any]) -> None:
        content["watches"]["inotify"][0]["watches"][0][3] = "/srv/node-alone"

    copy.manifest(edit)
    inode = os.stat(origin.node.path("/srv/node-alone")).st_ino
    with origin.bundle() as one:
        one.restore(copy.images)
        texts = [path.read_text() for path in origin.node.path(f"/proc/{one.pid}/fdinfo").iterdir()]
        assert not any(f"ino:{inode:x} " in text for text in texts)
        assert one.ask("counter")["counter_gap"] == 0
        assert any("/srv/node-alone" in note for note in record(origin.node, one.id)["notes"])
