"""Processes by their PID in our namespace, from /proc."""

from __future__ import annotations

import os


def started(pid: int) -> str:
    """When a process began, in clock ticks (field 22 of /proc/PID/stat): tells two users of one PID apart. Gone: ""."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def runs(pid: int, start: str) -> bool:
    """Whether the process that began at `start` is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return words[19] == start and words[0] not in "ZX"


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
