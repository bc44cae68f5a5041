"""The look at real processes of this machine: children that hold one thing each."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grit_runtime import look
from grit_runtime.look import sockets

HOLDING = Path(__file__).parents[1] / "nodes/conditions/holding.py"
# Its own /tmp, network and message queues: the names that the programs use are theirs alone. The program comes as text,
# since the checkout may be in /tmp.
PRIVATE = 'mount -t tmpfs tmpfs /tmp && ip link set lo up && exec /usr/bin/python3 -I -S -c "$0" "$1"'
ORDINARY = {"host-network", "mount-behind-spec"}

HELD = {
    "clean": None,
    "io-uring": ("io-uring", "refused"),
    "io-uring-mapped": ("io-uring", "refused"),
    "userfaultfd": ("userfaultfd", "refused"),
    "pidfd-thread": ("pidfd-thread", "refused"),
    "secret-memory": ("secret-memory", "refused"),
    "tcp-established": ("tcp-established", "handled"),
    "tcp-in-flight": ("in-flight-connection", "warning"),
    "mptcp": ("mptcp", "refused"),
    "netlink-data": ("netlink-unread", "refused"),
    "unix-in-flight": None,
    "unix-peer-closed": None,
    "ghost-shm": ("ghost-too-large", "refused"),
    "link-remap": ("link-remap", "handled"),
    "ofd-lock": ("file-lock", "handled"),
    "posix-lock": ("file-lock", "handled"),
    "overmounted": ("file-covered", "refused"),
    "zombie": None,
}


@contextmanager
def holding(name: str) -> Iterator[list[int]]:
    """The processes of a program that holds `name`, its first one first."""
    child = subprocess.Popen(
        ["unshare", "--mount", "--net", "--ipc", "sh", "-ec", PRIVATE, HOLDING.read_text(), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        assert child.stdout
        said = b""
        while b"ready" not in said:
            assert select.select([child.stdout], [], [], 60)[0], said
            part = os.read(child.stdout.fileno(), 4096)
            assert part, said
            said += part
        from grit_runtime.look.containers import descendants

        yield descendants(child.pid)
    finally:
        os.killpg(child.pid, 9)
        child.wait(30)


@pytest.mark.parametrize("name", HELD)
def test_finding(name: str) -> None:
    assert os.geteuid() == 0
    with holding(name) as pids:
        seen = look.look(pids, init=pids[0])
        found = {(finding.reason, finding.action) for finding in look.findings(seen, ghost_limit=1 << 20)}
        wanted = HELD[name]
        assert (wanted in found) if wanted else (found == set())


def test_needs_of_ghosts_and_where_they_are() -> None:
    with holding("ghost-file") as pids:
        seen = look.look(pids, init=pids[0])
        assert [(file.path, file.names) for file in seen.files] == [("/tmp/ghost", 0)]
        assert 8 << 20 <= seen.files[0].size <= look.needs(seen, {}).ghost_limit


def test_stdio_in_a_file_of_another_mount_namespace(tmp_path: Path) -> None:
    """The descriptor was opened before the namespace was made: CRIU wants it as `external file[mount:inode]`."""
    log = tmp_path / "log"
    with open(log, "wb") as file:
        child = subprocess.Popen(
            ["unshare", "--mount", "sleep", "600"], stdin=subprocess.PIPE, stdout=file, stderr=file
        )
    try:
        here = os.readlink("/proc/self/ns/mnt")
        end = time.monotonic() + 60
        while os.readlink(f"/proc/{child.pid}/ns/mnt") == here:
            assert time.monotonic() < end
            time.sleep(0.01)
        seen = look.look([child.pid])
        assert look.needs(seen, {}).external_files == [(seen.outside[0].mount, log.stat().st_ino, 1)]
        assert {finding.reason for finding in look.findings(seen)} - ORDINARY == {"stdio-file"}
    finally:
        child.kill()
        child.wait(30)


def test_thread_comes_back_from_a_namespace() -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with holding("clean") as pids:
        there = os.readlink(f"/proc/{pids[0]}/ns/net")
        seen = sockets.within(pids[0], "net", sockets.CLONE_NEWNET, lambda: os.readlink("/proc/thread-self/ns/net"))
        assert seen == there != before
        with pytest.raises(ZeroDivisionError):
            sockets.within(pids[0], "net", sockets.CLONE_NEWNET, lambda: 1 // 0)
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_processes_that_end_meanwhile_are_left_out() -> None:
    child = subprocess.Popen(["true"])
    child.wait(30)
    assert look.look([child.pid]).processes == []
