"""Processes by their PID in our namespace, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (field 3 of proc(5)); empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def namespace_pids(pid: int) -> list[int]:
    """A process's PIDs in its namespaces, ours first (NSpid of /proc/PID/status); empty when it is gone."""
    return [int(number) for number in _status(pid, b"NSpid:")]


def inner_pids(pids: Iterable[int]) -> dict[int, int]:
    """{host pid: pid in the container}. The container's pid namespace is that of the process least deep in NSpid, so a
    process in a namespace nested inside still gets the number by which the container's init knows it."""
    chains = {pid: chain for pid in pids if (chain := namespace_pids(pid))}
    depth = min((len(chain) for chain in chains.values()), default=0)
    return {pid: chain[depth - 1] for pid, chain in chains.items()}


def host_pids(pids: Iterable[int]) -> dict[int, int]:
    """{pid in the container: host pid}, the other way round."""
    return {inner: host for host, inner in inner_pids(pids).items()}


def started(pid: int) -> str:
    """When a process began, in clock ticks (field 22 of /proc/PID/stat): tells two users of one PID apart. Gone: ""."""
    fields = stat_of(pid)
    return fields[19] if fields else ""


def runs(pid: int, start: str) -> bool:
    """Whether the process that began at `start` is there and no zombie."""
    fields = stat_of(pid)
    return bool(fields) and fields[19] == start and fields[0] not in "ZX"


def anonymous_bytes(pid: int) -> int:
    """The anonymous memory that a process has (RssAnon of /proc/PID/status); 0 when it is gone."""
    words = _status(pid, b"RssAnon:")
    return int(words[0]) * 1024 if words else 0


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants, sorted."""
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        for task in _names(f"/proc/{one}/task"):
            try:
                with open(f"/proc/{one}/task/{task}/children") as file:
                    left.extend(int(child) for child in file.read().split())
            except OSError:
                continue
    return sorted(set(found))


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _status(pid: int, name: bytes) -> list[bytes]:
    """The words behind `name` in /proc/PID/status; empty when there is no such line, or the process is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next((line.split()[1:] for line in file if line.startswith(name)), [])
    except OSError:
        return []
