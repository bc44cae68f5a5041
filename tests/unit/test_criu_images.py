"""What is read of real images of CRIU 4.1.1 and 4.2.1, and what is missing from incomplete ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.criu import images
from grit_runtime.criu.imagefile import entries, rewrite
from grit_runtime.criu.protobuf import Message, encode_varint

from tests.unit import criu_images

SPEC = {"/proc": "proc", "/dev": "tmpfs"}


@pytest.fixture(params=criu_images.VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return criu_images.copy(request.param, tmp_path)


def reasons(folder: str) -> list[tuple[str, str]]:
    return [(problem.reason, problem.message) for problem in images.problems(folder)]


def change(folder: str, name: str, edit: object) -> None:
    path = os.path.join(folder, name)
    rewrite(path, path, edit)  # type: ignore[arg-type]


def test_the_tree_of_processes(folder: str) -> None:
    tasks = images.tasks(folder)
    assert [(task.pid, task.parent, task.comm, task.exe) for task in tasks[:2]] == [
        (1, 0, "busybox", "/bin/busybox"),
        (7, 1, "busybox", "/bin/busybox"),
    ]
    assert {task.architecture for task in tasks} == {"x86_64"}
    one = tasks[0].credentials[0]
    assert (one.uid, one.no_new_privs, one.seccomp, one.lsm) == (0, True, "filter", "")
    # CAP_CHOWN 0, CAP_KILL 5, CAP_NET_BIND_SERVICE 10
    assert one.capabilities == images.Capabilities(0, 1 << 0 | 1 << 5 | 1 << 10, 1057, 1057, 0)
    assert tasks[0].limits[7] == (512, 1024)  # RLIMIT_NOFILE


@pytest.mark.parametrize(("flags", "expected"), [(1, ["filter", "filter"]), (0, ["filter", "disabled"])])
def test_filters_that_all_threads_share_stand_with_the_leader(folder: str, flags: int, expected: list[str]) -> None:
    def joined(entry: Message) -> Message:
        return entry if entry.integer(1) != 1 else entry.replaced(5, encode_varint(1) + encode_varint(7))

    def bare(entry: Message) -> Message:
        thread = entry.message(5)
        assert thread
        return entry.replaced(3, None).replaced(5, thread.replaced(11, None).replaced(12, None).encode())

    def flagged(entry: Message) -> Message:
        filters = [one.replaced(3, flags).encode() for one in entry.messages(1)]
        return Message([entry.fields[0]._replace(value=one) for one in filters], entry.where)

    change(folder, "pstree.img", joined)  # 7 becomes a thread of 1
    change(folder, "core-7.img", bare)
    change(folder, "seccomp.img", flagged)
    assert [one.seccomp for one in images.tasks(folder)[0].credentials] == expected


def test_capabilities_beyond_the_first_32(folder: str) -> None:
    def raised(entry: Message) -> Message:
        thread = entry.message(5)
        creds = thread.message(10) if thread else None
        assert thread and creds
        # CAP_CHECKPOINT_RESTORE is 40: bit 8 of the second word
        packed = creds.replaced(11, encode_varint(1 << 5) + encode_varint(1 << 8))
        return entry.replaced(5, thread.replaced(10, packed.encode()).encode())

    change(folder, "core-7.img", raised)
    assert images.capabilities(folder)[7].effective == 1 << 5 | 1 << 40


def test_mounts_keys_and_masks(folder: str) -> None:
    assert images.external_keys(folder) == {
        "/dev/null": ["/proc/timer_list", "/proc/keys"],
        "/etc/hosts": ["/etc/hosts"],
        "/usr/lib/libcuda.so.570.10": ["/usr/lib/libcuda.so.570.10"],
    }
    assert images.masks(folder) == ["/proc/keys", "/proc/timer_list"]
    assert images.readonly(folder) == ["/proc/sys"]
    root = images.root(folder)
    assert root is not None and root.root == "/b/rootfs"
    assert images.unexpected(folder, SPEC) == []


def test_a_mask_that_something_covers_is_none(folder: str) -> None:
    def uncover(entry: Message) -> Message:
        if entry.text(7) == "/proc/sys":
            return entry.replaced(7, b"/proc/keys").replaced(6, b"/keys")
        return entry

    change(folder, "mountpoints-13.img", uncover)
    assert images.masks(folder) == ["/proc/timer_list"]
    assert images.readonly(folder) == []
    assert images.unexpected(folder, SPEC) == []


@pytest.mark.parametrize(
    ("number", "value"), [(7, b"/elsewhere"), (5, 0), (1, 3)], ids=["a view of proc elsewhere", "writable", "devtmpfs"]
)
def test_mounts_that_reach_past_the_spec_are_found(folder: str, number: int, value: bytes | int) -> None:
    def hostile(entry: Message) -> Message:
        return entry.replaced(number, value) if entry.text(7) == "/proc/sys" else entry

    change(folder, "mountpoints-13.img", hostile)
    assert [mount.id for mount in images.unexpected(folder, SPEC)] == [50]


def test_namespaces_shared_with_the_node_are_found(folder: str) -> None:
    assert {one.shared for one in images.namespaces(folder)} == {("user", "cgroup", "time")}
    own = images.inventory(folder).namespaces
    change(folder, "ids-7.img", lambda entry: entry.replaced(9, own["mnt"]).replaced(5, None))
    assert [one.shared for one in images.namespaces(folder) if one.pid == 7] == [
        ("pid", "mnt", "user", "cgroup", "time")
    ]


def test_open_files_and_deleted_ones(folder: str) -> None:
    names = {file.name for file in images.open_files(folder)}
    assert {"/bin/busybox", "/dev/null", "/tmp/gone", "/data/kept"} <= names
    assert images.remaps(folder) == [images.Remap("/tmp/gone", "ghost", 5)]
    assert images.parent(folder) is None


def test_sockets(tmp_path: Path) -> None:
    folder = criu_images.copy("4.2.1", tmp_path)
    (socket,) = images.sockets(folder)
    assert (socket.protocol, socket.state, socket.address, socket.port) == ("tcp", "listen", "::", 8080)
    assert images.addresses(folder) == ["::"]

    def elsewhere(entry: Message) -> Message:
        inner = entry.message(4)
        if inner is None:
            return entry
        address = int.from_bytes(bytes([10, 0, 0, 7]), "little")
        plain = inner.replaced(3, 2).replaced(6, 1).replaced(11, address).replaced(12, address).replaced(8, 99)
        return entry.replaced(4, plain.encode())

    change(folder, "files.img", elsewhere)
    assert images.addresses(folder) == ["10.0.0.7"]
    (socket,) = images.sockets(folder)
    assert (socket.state, socket.peer, socket.peer_port) == ("established", "10.0.0.7", 99)
    assert [problem for problem, _ in reasons(folder)] == ["image-missing"]  # its queues: tcp-stream-*.img

    def mapped(entry: Message) -> Message:
        inner = entry.message(4)
        parts = (b"\0" * 4, b"\0" * 4, b"\0\0\xff\xff", bytes([10, 0, 0, 8]))
        words = b"".join(encode_varint(int.from_bytes(part, "little")) for part in parts)
        return entry.replaced(4, inner.replaced(3, 10).replaced(11, words).encode()) if inner else entry

    change(folder, "files.img", mapped)
    assert images.addresses(folder) == ["10.0.0.8"]


def test_memory_by_either_way_of_counting_pages(folder: str) -> None:
    memory = images.memory(folder, 1)
    with open(os.path.join(folder, "pages-1.img"), "rb") as file:
        assert memory.stored == os.fstat(file.fileno()).st_size > 0
    assert memory.mapped == 2396160
    assert memory.mappings == 11


def test_the_hostname_is_replaced(folder: str) -> None:
    assert images.hostname(folder) == "old-pod"
    path = os.path.join(folder, "utsns-12.img")
    images.set_hostname(path, path, "new")
    assert images.hostname(folder) == "new"
    with open(path, "rb") as file:
        assert images.with_hostname(file.read(), "third").endswith(b"\x0a\x05third\x12\x06(none)")


def test_what_criu_measured(folder: str) -> None:
    stats = images.stats(folder)
    assert stats is not None and 10_000 < stats.frozen < 100_000
    stored = sum(images.memory(folder, pid).stored for pid, _, _ in images.processes(folder))
    assert stats.pages_written == stored / 4096


def test_whole_images_have_no_problem(folder: str) -> None:
    assert reasons(folder) == []
    images.complete(folder)


@pytest.mark.parametrize(
    "name",
    ["inventory.img", "pstree.img", "core-7.img", "ids-1.img", "mm-7.img", "fs-1.img", "pagemap-1.img", "fdinfo-3.img",
     "files.img", "utsns-12.img", "mountpoints-13.img", "ipcns-var-11.img", "tmpfs-dev-56.tar.gz.img", "pages-2.img",
     "ghost-file-1.img"],
)  # fmt: skip
def test_a_missing_file_is_named(folder: str, name: str) -> None:
    os.unlink(os.path.join(folder, name))
    found = reasons(folder)
    assert found and all(reason == "image-missing" for reason, _ in found)
    assert any(name in message for _, message in found)
    with pytest.raises(Refusal):
        images.complete(folder)


@pytest.mark.parametrize("name", ["pages-1.img", "pstree.img", "mm-1.img", "core-7.img", "inventory.img", "files.img"])
def test_a_file_that_is_cut_short_is_named(folder: str, name: str) -> None:
    path = os.path.join(folder, name)
    os.truncate(path, os.path.getsize(path) - 3)
    assert any(reason == "image-truncated" and name in message for reason, message in reasons(folder))


def test_a_file_of_another_kind_is_named(folder: str) -> None:
    os.replace(os.path.join(folder, "pstree.img"), os.path.join(folder, "fs-1.img"))
    malformed, missing = reasons(folder)
    assert malformed[0] == "image-malformed" and "fs-1.img" in malformed[1]
    assert missing[0] == "image-missing" and "pstree.img" in missing[1]


def test_a_tmpfs_from_outside_is_not_wanted_in_the_image(folder: str) -> None:
    def outside(entry: Message) -> Message:
        return entry.replaced(13, 1).replaced(18, b"/data") if entry.text(7) == "/data" else entry

    os.unlink(os.path.join(folder, "tmpfs-dev-56.tar.gz.img"))
    change(folder, "mountpoints-13.img", outside)
    assert reasons(folder) == []


def test_an_ended_process_needs_no_memory(folder: str) -> None:
    def ended(entry: Message) -> Message:
        inner = entry.message(3)
        assert inner is not None
        return entry.replaced(3, inner.replaced(1, 6).encode())

    change(folder, "core-7.img", ended)
    for name in ("mm-7.img", "ids-7.img", "fs-7.img", "pagemap-7.img", "pages-2.img"):
        os.unlink(os.path.join(folder, name))
    assert reasons(folder) == []
    assert [task.state for task in images.tasks(folder)][1] == "zombie"
    assert len(images.namespaces(folder)) == len(images.tasks(folder)) - 1


def test_memory_is_read_from_pages_and_nowhere_else(folder: str) -> None:
    from grit_runtime.criu import tasks

    first = next(entry for number, entry in enumerate(entries(os.path.join(folder, "pagemap-1.img"))) if number == 1)
    with open(os.path.join(folder, "pages-1.img"), "r+b") as file:
        file.write(b"hello")
    assert tasks.read(folder, 1, first.integer(1), 5) == b"hello"
    assert tasks.read(folder, 1, first.integer(1) + 3, 4) == b"lo\0\0"
    assert tasks.read(folder, 1, 12345, 4) == b""
