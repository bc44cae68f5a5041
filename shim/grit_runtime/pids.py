"""A pid namespace that others live in too: a pod's, or the node's. CRIU gives each task the PID that it had."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence

NS_GET_PARENT = 0xB702  # linux/nsfs.h: the namespace above; EPERM for the one that we live in
_FIELDS = ("NSpid:", "NSpgid:", "NSsid:")  # proc_pid_status(5): one number for each level, ours first


def needed(processes: Iterable[tuple[int, int, list[int]]]) -> set[int]:
    """The numbers that CRIU will ask for: `processes` as criu.images.processes gives them."""
    return {number for pid, _, threads in processes for number in (pid, *threads) if number}


def taken(namespace: str) -> set[int]:
    """The PIDs, thread IDs, process groups and sessions that are in use in the pid namespace that `namespace` names."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wanted = _identity(os.fstat(fd))
    finally:
        os.close(fd)
    depths: dict[tuple[int, int], int | None] = {}
    found: set[int] = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            own = _identity(os.stat(f"/proc/{pid}/ns/pid"))
            if own not in depths:
                depths[own] = _depth_below(f"/proc/{pid}/ns/pid", wanted)
            depth = depths[own]
            if depth is None:
                continue
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/status") as status:
                    found |= numbers(status.read(), depth)
        except OSError:
            continue  # it has ended meanwhile; what has no namespace any more has given its numbers back, or will
    return found


def numbers(status: str, depth: int) -> set[int]:
    """The numbers of one task at the level `depth` above its innermost, from its /proc/PID/status."""
    found = set()
    for line in status.splitlines():
        if line.startswith(_FIELDS):
            values = line.split()[1:]
            if len(values) > depth:
                found.add(int(values[-1 - depth]))
    return found - {0}


def first_clash(wanted: Iterable[int], used: Sequence[int] | set[int]) -> int | None:
    """The smallest number that is wanted and in use."""
    return min(set(wanted) & set(used), default=None)


def _depth_below(path: str, wanted: tuple[int, int]) -> int | None:
    """How many levels the namespace at `path` lies below `wanted`; None where it doesn't."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    depth = 0
    try:
        while _identity(os.fstat(fd)) != wanted:
            above = fcntl.ioctl(fd, NS_GET_PARENT)
            os.close(fd)
            fd = above
            depth += 1
        return depth
    except OSError:
        return None
    finally:
        os.close(fd)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino
