"""The look at a container's processes: the kernel's texts, and what is concluded from the facts."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from grit_runtime import mounts
from grit_runtime.checks import table
from grit_runtime.look import facts, findings, judging, needs, proc, sockets, surroundings
from grit_runtime.look.containers import descendants, find, is_sandbox, names_of
from grit_runtime.look.facts import Device, File, Lock, Look, Outside, Process, Shared, Socket, Special

STAT = "77 (a) b (c) S 42 77 77 34816 77 4194560 1 0 0 0 0 0 0 0 20 0 3 0 100 1 1"
MAPS = """\
55d0c0000000-55d0c0001000 r-xp 00000000 08:01 100                        /usr/bin/python3.11
7f0000000000-7f0000001000 rw-s 00000000 00:01 5                          /SYSV00000000 (deleted)
7f0000001000-7f0000002000 rw-s 00000000 00:17 9                          /dev/shm/torch_1 (deleted)
7f0000002000-7f0000003000 rw-s 00001000 00:17 9                          /dev/shm/torch_1 (deleted)
7f0000003000-7f0000004000 rw-s 00000000 00:0f 7                          anon_inode:[io_uring]
7f0000004000-7f0000005000 rw-p 00000000 00:00 0                          [heap]
7f0000005000-7f0000006000 --xp 00000000 00:00 0                          [uprobes]
7f0000006000-7f0000007000 rw-s 00000000 00:06 300                        /dev/nvidia0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 11 1
   1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:C350 01 00000000:00000007 00:00000000 00000000     0        0 12 1
   2: B80D0120000000000000000001000000:1F90 B80D0120000000000000000002000000:C350 06 00000000:00000000 00:00000000 00000000     0        0 0 1
"""  # noqa: E501
SHM = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid
         0          5  1600               1048576   100   100      2     0     0
"""
NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 0   77         00000000 4352     0        0     2        0        21
0000000000000000 16  78         00000000 0        0        0     2        0        22
"""


def test_process_names_may_hold_anything() -> None:
    assert proc.stat(STAT) == ("a) b (c", "S", 42, 77, 34816)


def test_mappings_of_interest_each_once() -> None:
    found = [(m.inode, m.path) for m in proc.mappings(MAPS)]
    assert found == [
        (5, "/SYSV00000000 (deleted)"), (9, "/dev/shm/torch_1 (deleted)"), (7, "anon_inode:[io_uring]"),
        (0, "[uprobes]"), (300, "/dev/nvidia0"),
    ]  # fmt: skip
    assert proc.mappings(MAPS.splitlines()[0]) == []


def test_inet_table() -> None:
    found = sockets.inet(TCP6, {11: "", 12: "", 0: ""})
    assert found[11] == sockets.Inet(10, "[0:0:0:0:0:0:0:1]:8080", "[::]:0", 2)
    assert found[12] == sockets.Inet(1, "127.0.0.1:8080", "127.0.0.2:50000", 0)
    assert sockets.address("0100007F:0016") == "127.0.0.1:22"


def test_netlink_and_shm_tables() -> None:
    assert sockets.netlink(NETLINK) == {21: 4352, 22: 0}
    assert surroundings.shm_table(SHM) == {5: (1048576, 2)}


def diag(kind: int, state: int, inode: int, **attributes: bytes) -> bytes:
    numbers = {"name": 0, "peer": 2, "icons": 3, "shutdown": 6}
    body = struct.pack("BBBxIII", 1, kind, state, inode, 0, 0)
    for name, value in attributes.items():
        body += struct.pack("HH", 4 + len(value), numbers[name]) + value + bytes(-len(value) % 4)
    return body


def test_unix_ends() -> None:
    """Whose the other end is, for each way in which the kernel shows it."""
    stream, datagram = 1, 2
    table = sockets.unix(
        [
            diag(stream, 1, 1, peer=struct.pack("I", 2)),
            diag(stream, 1, 2, peer=struct.pack("I", 1)),
            diag(stream, 1, 3, peer=struct.pack("I", 99)),
            diag(stream, 10, 4, name=b"/run/x\0", icons=struct.pack("II", 5, 98)),
            diag(stream, 1, 5, shutdown=b"\0"),
            diag(stream, 1, 6, shutdown=b"\0"),
            diag(stream, 1, 7, shutdown=b"\3"),
            diag(datagram, 1, 8, peer=struct.pack("I", 97)),
            diag(datagram, 7, 97, name=b"/dev/log\0"),
            diag(datagram, 7, 9),
            diag(stream, 10, 10, name=b"\0abstract"),
        ]
    )
    assert table[10].name == "@abstract" and table[4].clients == (5, 98)
    holders = {inode: (1, inode) for inode in (*range(1, 11), 50)}
    waiting = {5, 98}
    outside = {i: sockets._unix(holders, i, "UNIX", table, waiting) for i in holders}
    assert {inode for inode, socket in outside.items() if socket.outside} == {3, 6, 8, 50}
    assert outside[8].named == "/dev/log" and outside[3].named == ""


def process(pid: int, parent: int = 0, **more: Any) -> Process:
    spaces = {kind: f"{kind}:[1]" for kind in proc.NAMESPACES}
    made = Process(pid, pid, parent, 1, "S", 0, 0, 2, 1, 1 << 20, "", f"p{pid}", 2, spaces, False)
    return made._replace(**more)


def a_look(**more: Any) -> Look:
    made: dict[str, Any] = dict.fromkeys(Look._fields, [])
    made |= {"init": 10, "processes": [process(10), process(11, 10)], "links": {}, "freezer": 2, "stacked": ""}
    return Look(**{**made, "host_namespaces": frozenset(), **more})


def tcp(state: int, waiting: int = 0) -> Socket:
    return Socket((10, 3), 1, "TCP", state, "a", "b", waiting, False, "")


def test_clean_container_has_no_findings_and_no_needs() -> None:
    plain = a_look(
        sockets=[tcp(facts.TCP_LISTEN), tcp(7), Socket((10, 4), 2, "UNIX-STREAM", 1, "", "3", 0, False, "")],
        devices=[Device((10, 5), "/dev/null", "chr", 1, 3), Device((10, 6), "/dev/pts/0", "chr", 136, 0)],
        special=[Special((10, 7), "net:[1]", 0, ""), Special((10, 8), "anon_inode:[pidfd]", 11, "")],
        shared=[Shared(10, 1, 1, 2, 2)],
        processes=[process(10), process(11, 10, stopped=True)],
    )
    assert findings(plain, ghost_limit=1) == []
    assert needs(plain, {}) == (False, False, False, False, False, 1 << 20, False, [], False)


def test_needs_name_each_option() -> None:
    made = needs(
        a_look(
            sockets=[tcp(1), tcp(facts.TCP_LISTEN, 1), Socket((10, 4), 2, "UNIX", 1, "", "", 0, True, "/dev/log")],
            files=[File((10, 3), "/a", 5 << 20, 0, 1, 1), File((10, 4), "/b", 9 << 20, 1, 1, 2)],
            locks=[Lock("FLOCK", 10, "/a")],
            outside=[Outside((10, 2), "/log", 7, 8, "file"), Outside((10, 1), "/log", 7, 8, "file"),
                     Outside((11, 1), "/log", 7, 9, "file"), Outside((10, 0), "/dev/pts/0", 7, 3, "other")],
            masters=["/x"],
        ),
        {},
    )  # fmt: skip
    assert made == (True, True, True, True, True, 10 << 20, False, [(7, 8, 1)], True)
    leaderless = a_look(processes=[process(10, session=0)])
    assert needs(leaderless, {}).shell_job and not needs(leaderless, {"process": {"terminal": True}}).shell_job


CASES = [
    ({"special": [Special((10, 3), "anon_inode:[io_uring]", 0, "")]}, "io-uring"),
    ({"special": [Special((10, 3), "anon_inode:[new]", 0, "")]}, "descriptor-unsupported"),
    ({"special": [Special((10, 3), "anon_inode:[pidfd]", 99, "")]}, "pidfd"),
    ({"special": [Special((10, 3), "net:[2]", 0, "")]}, "namespace-outside"),
    ({"sockets": [Socket((10, 3), 1, "AF_VSOCK", 0, "", "", 0, False, "")]}, "socket-unsupported"),
    ({"sockets": [Socket((10, 3), 1, "MPTCPv6", 0, "", "", 0, False, "")]}, "mptcp"),
    ({"sockets": [Socket((10, 3), 1, "UNIX", 1, "", "", 0, True, "")]}, "unix-peer-outside"),
    ({"devices": [Device((10, 3), "/dev/fuse", "chr", 10, 229)]}, "device-foreign"),
    ({"files": [File((10, 3), "/a", 2, 0, 1, 1)]}, "ghost-too-large"),
    ({"outside": [Outside((10, 3), "/x", 1, 1, "file")]}, "file-outside"),
    ({"outside": [Outside((10, 1), "/dev/pts/0", 1, 1, "other")]}, "terminal-outside"),
    ({"shared": [Shared(10, 1, 1, 3, 2)]}, "sysv-shared"),
    ({"shared": [Shared(10, 1, 1, 2, 2)], "host_namespaces": frozenset({"ipc"})}, "sysv-host"),
    ({"mapped": [(10, "/dev/dri/card0")]}, "device-mapped"),
    ({"processes": [process(10), process(11, 10, tracer=99)]}, "traced"),
    ({"processes": [process(10), process(11, 10, stopped=True)], "freezer": 1}, "task-stopped"),
    ({"processes": [process(10), process(11, 10, session=0)]}, "session-outside"),
    ({"processes": [process(10), process(11, 10, namespaces={"pid": "pid:[2]"})]}, "nested-pid-namespace"),
    ({"strays": [(12, "x")]}, "process-stray"),
    ({"stacked": "/layer"}, "overlay-stacked"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "reason"), CASES, ids=[reason for _, reason in CASES])
def test_refusals(more: dict[str, object], reason: str) -> None:
    found = findings(a_look(**more), ghost_limit=1)
    assert [(finding.reason, finding.action) for finding in found] == [(reason, "refused")]
    assert found[0].text and found[0].refusal().remedy  # the row and all of its facts are there


def test_what_processes_outside_the_tree_hold_does_not_count() -> None:
    found = findings(
        a_look(
            processes=[process(10), process(11, 500)],
            special=[Special((11, 3), "anon_inode:[io_uring]", 0, "")],
            outside=[Outside((11, 0), "/dev/null", 1, 1, "other")],
        )
    )
    assert [(finding.reason, finding.process) for finding in found] == [("exec-session", 11)]


def test_gpu_descriptors_are_left_to_the_suspension() -> None:
    held = a_look(devices=[Device((10, 3), "/dev/nvidia0", "chr", 195, 0)], mapped=[(10, "/dev/nvidia0")])
    assert findings(held) == []


def test_overlay_on_an_overlay() -> None:
    host = mounts.parse("1 0 0:1 / / rw - overlay o rw\n2 1 8:1 / /var/lib/containerd rw - ext4 /dev/x rw")
    root = "1 0 0:9 / / rw - overlay overlay rw,lowerdir={},upperdir=/var/lib/containerd/2/fs,workdir=/w"
    for lower, found in (
        ("/var/lib/containerd/1/fs", ""), ("/var/lib/containerd/1/fs:/srv/b", "/srv/b"), ("1/fs:2/fs", ""),
    ):  # fmt: skip
        assert surroundings.stacked(mounts.parse(root.format(lower)), host) == found


def test_every_reason_that_is_named_has_a_row() -> None:
    named = {*judging.UNSUPPORTED.values(), *judging.WATCHES.values(), *judging.NESTED.values()}
    assert named <= table().keys()


def test_names_of_containers() -> None:
    cri = {
        "annotations": {
            "io.kubernetes.cri.container-name": "main", "io.kubernetes.cri.sandbox-name": "pod",
            "io.kubernetes.cri.sandbox-namespace": "team", "io.kubernetes.cri.container-type": "container",
        }
    }  # fmt: skip
    assert names_of(cri) == ("main", "pod", "team/pod", "pod/main") and not is_sandbox(cri)
    assert is_sandbox({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}})
    assert descendants(5, [(5, 1), (6, 5), (7, 6), (8, 1)]) == [5, 6, 7]


def test_find_by_id_name_and_pod(tmp_path_factory: pytest.TempPathFactory) -> None:
    import json
    import os

    root = tmp_path_factory.mktemp("state")
    for id, note in (("abcd1111", "web"), ("abce2222", "web"), ("ffff3333", "db")):
        bundle = tmp_path_factory.mktemp("bundle")
        (root / id).mkdir()
        state = {"init_process_pid": os.getpid(), "config": {"labels": [f"bundle={bundle}"]}}
        (root / id / "state.json").write_text(json.dumps(state))
        notes = {"io.kubernetes.cri.sandbox-name": note, "io.kubernetes.cri.sandbox-namespace": "n"}
        (bundle / "config.json").write_text(json.dumps({"annotations": notes}))
    (root / "broken").mkdir()
    assert [one.id for one in find("abcd1", str(root))] == ["abcd1111"]
    assert [one.id for one in find("n/web", str(root))] == ["abcd1111", "abce2222"]
    for name, reason in (("nothing", "container-not-found"), ("abc", "container-not-found")):
        with pytest.raises(Exception, match=reason):
            find(name, str(root))
