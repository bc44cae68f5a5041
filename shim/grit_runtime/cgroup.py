"""The container's freezer and its list of processes, in cgroup version 1, version 2, and the hybrid of both.

Source of the file names: the kernel's Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from grit_runtime.checks import refuse


class Group(NamedTuple):
    """The control group that freezes a container: an absolute `path` in the mounted hierarchy, and its `version`."""

    path: str
    version: int


def of(pid: int) -> Group:
    """The freezer's group of process `pid`: version 1's if that controller is mounted, else version 2's.

    Refuses `cgroup-unknown` when the process is gone or neither hierarchy is mounted.
    """
    where = mounted()
    try:
        with open(f"/proc/{pid}/cgroup") as lines:
            own = parse(lines.read())
    except OSError:
        own = {}
    for name, version in (("freezer", 1), ("", 2)):
        if name in where and name in own:
            return Group(where[name] + own[name].rstrip("/"), version)
    raise refuse("cgroup-unknown", pid=pid)


def parse(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: controller to path. Version 2's has the empty name."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    return found


def mounted(mountinfo: str = "/proc/self/mountinfo") -> dict[str, str]:
    """Where each hierarchy is mounted here: controller (version 2: empty name) to mountpoint."""
    found: dict[str, str] = {}
    with open(mountinfo) as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            if kind == "cgroup2":
                found.setdefault("", left.split()[4])
            elif kind == "cgroup":
                for name in options.strip().split(","):
                    found.setdefault(name, left.split()[4])
    return found


def processes(group: Group) -> list[int]:
    """All processes in the group and the groups below it, by their PIDs in our namespace, sorted."""
    found: set[int] = set()
    for folder, _, _ in os.walk(group.path):
        try:
            with open(folder + "/cgroup.procs") as lines:
                found.update(int(line) for line in lines)
        except OSError:
            continue
    found.discard(0)
    return sorted(found)


def frozen(group: Group) -> bool:
    """Whether the group was itself told to freeze: that of a parent isn't ours to end."""
    try:
        if group.version == 1:
            return _read(group.path + "/freezer.self_freezing") == "1"
        return _read(group.path + "/cgroup.freeze") == "1"
    except OSError:
        return False


def freeze(group: Group, timeout: float = 10.0, *, give_up: bool = True) -> None:
    """Freeze the group and wait until every task in it has stopped. Its undo is `thaw`.

    Refuses `freeze-timeout` after `timeout` seconds, with the group thawed again unless `give_up` is False.
    """
    end = time.monotonic() + timeout
    pause = 0.0002
    while True:
        # Version 1 can stick in FREEZING while tasks fork; writing the state again moves it on, as runc does.
        _write(group, True)
        if _stopped(group):
            return
        if time.monotonic() > end:
            if give_up:
                thaw(group)
            raise refuse("freeze-timeout", cgroup=group.path, seconds=round(timeout))
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


def begin_to_freeze(group: Group) -> None:
    """Tell the group to freeze and don't wait: its tasks stop before they run any of their own code again."""
    _write(group, True)


def thaw(group: Group) -> None:
    """Let the group's tasks run. A group that is gone has nothing to thaw."""
    try:
        _write(group, False)
    except FileNotFoundError:
        pass


def move(pids: Iterable[int], group: Group) -> None:
    """Put processes into another group; those that are gone are left out."""
    for pid in pids:
        try:
            fd = os.open(f"{group.path}/cgroup.procs", os.O_WRONLY)
            try:
                os.write(fd, str(pid).encode())
            finally:
                os.close(fd)
        except ProcessLookupError:
            continue


def join(pids: Iterable[int], leader: int) -> None:
    """Put processes into the groups of `leader`, of all hierarchies."""
    with open(f"/proc/{leader}/cgroup") as lines:
        own = parse(lines.read())
    for name, mountpoint in mounted().items():
        if name in own:
            group = Group(mountpoint + own[name].rstrip("/"), 2 if name == "" else 1)
            move(set(pids) - set(processes(group)), group)


def kill(group: Group, timeout: float = 10.0) -> list[int]:
    """SIGKILL every process of the group, frozen or not; returns those still there after `timeout` seconds."""
    import signal

    end = time.monotonic() + timeout
    while True:
        left = processes(group)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        thaw(group)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)


def remove(group: Group) -> None:
    """Remove the (empty) group and what is below it, as far as the kernel lets us."""
    for folder, _, _ in os.walk(group.path, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            continue


def _write(group: Group, freezing: bool) -> None:
    name, value = ("freezer.state", ("THAWED", "FROZEN")) if group.version == 1 else ("cgroup.freeze", ("0", "1"))
    fd = os.open(f"{group.path}/{name}", os.O_WRONLY)
    try:
        os.write(fd, value[freezing].encode())
    finally:
        os.close(fd)


def _stopped(group: Group) -> bool:
    if group.version == 1:
        return _read(group.path + "/freezer.state") == "FROZEN"
    return "frozen 1" in _read(group.path + "/cgroup.events")


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
