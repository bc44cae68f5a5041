"""The walk of /proc: every process once, each descriptor's link once, details only where they matter."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Any

from grit_runtime import mounts
from grit_runtime.look import proc, sockets, surroundings
from grit_runtime.look.facts import NO_FD, Device, File, Lock, Look, Outside, Place, Process, Special

# Links that begin with a slash and are no path in the container.
PATHLESS = ("/memfd:", "/dmabuf:", "/secretmem", "/SYSV", "/[aio]", "/anon_hugepage", "/dev/zero (deleted)")
# Anonymous descriptors that CRIU dumps without any help: not worth an fdinfo.
PLAIN = ("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[signalfd]", "anon_inode:[timerfd]")
STDIO = (0, 1, 2)
LOCKS = "/proc/locks"


class _Walk:
    """What is gathered on the way."""

    def __init__(self) -> None:
        self.links: dict[Place, str] = {}
        self.files: dict[tuple[int, int], File] = {}
        self.devices: list[Device] = []
        self.special: list[Special] = []
        self.holders: dict[int, Place] = {}
        self.mapped: list[tuple[int, str]] = []
        self.segments: list[tuple[int, int]] = []
        self.checked: dict[tuple[str, str], tuple[Place, int, int]] = {}
        self.mounts: dict[str, int] = {}  # mount namespace -> a process in it


def look(
    pids: Iterable[int], *, spec: dict[str, Any] | None = None, init: int | None = None, locks: str | None = None
) -> Look:
    """Look at the processes `pids` of a container whose first one is `init` (default: the lowest), made from `spec`.
    `locks` is the text of /proc/locks, if it has been read: the kernel takes 4 ms and more for it.

    A process that ends meanwhile is left out. Without root most of it can't be read: PermissionError.
    """
    numbers = sorted(set(pids))
    first = init if init is not None else (numbers[0] if numbers else 0)
    walk = _Walk()
    processes = []
    for pid in numbers:
        try:
            process = proc.process(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        processes.append(process)
        if process.state in "ZX":
            continue
        try:
            _descriptors(walk, process)
            _mappings(walk, process)
            _folders(walk, process)
        except (FileNotFoundError, ProcessLookupError):
            continue
    outside, covered = _mounted(walk)
    alive = [process.pid for process in processes if process.namespaces.get("net")]
    networks = {process.pid: process.namespaces.get("net", "") for process in processes}
    behind, masters, stacked = surroundings.behind(first, spec)
    return Look(
        init=first,
        processes=processes,
        links=walk.links,
        files=list(walk.files.values()),
        sockets=sockets.look(walk.holders, networks, alive),
        devices=walk.devices,
        outside=outside,
        covered=covered,
        locks=_locks(walk, {process.pid for process in processes}, proc.read(LOCKS) if locks is None else locks),
        special=walk.special,
        shared=surroundings.shared(walk.segments),
        mapped=walk.mapped,
        host_namespaces=surroundings.host_namespaces(processes, first),
        mounts_behind=behind,
        masters=masters,
        strays=surroundings.strays(first, set(numbers)),
        freezer=surroundings.freezer(first),
        stacked=stacked,
    )


def _descriptors(walk: _Walk, process: Process) -> None:
    pid = process.pid
    for fd, link in proc.links(pid).items():
        place = (pid, fd)
        walk.links[place] = link
        if link.startswith("/"):
            if link.startswith(PATHLESS):
                if link.startswith(("/secretmem", "/dmabuf:")):
                    walk.special.append(Special(place, link.partition(" ")[0], 0, ""))
                continue
            if link.endswith(proc.DELETED):
                _deleted(walk, place, link, f"/proc/{pid}/fd/{fd}")
            elif link.startswith("/dev/") and not link.startswith("/dev/shm/"):
                _device(walk, place, link)
            _mount(walk, process, place, link)
        elif link.startswith("socket:["):
            walk.holders.setdefault(int(link[8:-1]), place)
        elif not link.startswith("pipe:[") and link not in PLAIN:
            _special(walk, process, place, link)


def _deleted(walk: _Walk, place: Place, link: str, through: str) -> None:
    try:
        facts = os.stat(through)
    except OSError:
        return
    if stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode):
        path = link[: -len(proc.DELETED)]
        file = File(place, path, facts.st_blocks * 512, facts.st_nlink, facts.st_dev, facts.st_ino)
        walk.files.setdefault((facts.st_dev, facts.st_ino), file)


def _device(walk: _Walk, place: Place, link: str) -> None:
    try:
        facts = os.stat(f"/proc/{place[0]}/fd/{place[1]}")
    except OSError:
        return
    kind = "chr" if stat.S_ISCHR(facts.st_mode) else "blk" if stat.S_ISBLK(facts.st_mode) else ""
    if kind:
        walk.devices.append(Device(place, link, kind, os.major(facts.st_rdev), os.minor(facts.st_rdev)))


def _mount(walk: _Walk, process: Process, place: Place, link: str) -> None:
    """Note on which mount a file is open; the path alone doesn't tell that of stdio which is a file of the host.

    fdinfo is read once for each path, and always where one path often is two files.
    """
    namespace = process.namespaces.get("mnt", "")
    walk.mounts.setdefault(namespace, process.pid)
    own = place[1] in STDIO or link.startswith("/dev/")
    key = (f"{place[0]}:{place[1]}" if own else namespace, link)
    if key not in walk.checked:
        try:
            info = proc.info(*place)
        except OSError:
            return
        walk.checked[key] = (place, info.mount, info.inode)


def _mounted(walk: _Walk) -> tuple[list[Outside], list[tuple[Place, str]]]:
    """Files on mounts that no process of ours has in its namespace, and files on a mount that is mounted over."""
    ids: set[int] = set()
    over: set[int] = set()
    queues: set[int] = set()
    for pid in walk.mounts.values():
        try:
            table = mounts.read(pid)
        except OSError:
            continue
        points = {mount.id: mount.point for mount in table}
        ids |= points.keys()
        over |= {mount.parent for mount in table if points.get(mount.parent) == mount.point and mount.point != "/"}
        queues |= {os.makedev(*map(int, mount.dev.split(":"))) for mount in table if mount.fstype == "mqueue"}
    outside, covered = [], []
    for (_, link), (place, mount, inode) in walk.checked.items():
        if mount in over:
            covered.append((place, link))
        elif mount not in ids:
            try:
                facts = os.stat(f"/proc/{place[0]}/fd/{place[1]}")
            except OSError:
                continue
            kind = "queue" if facts.st_dev in queues else "file" if stat.S_ISREG(facts.st_mode) else "other"
            outside.append(Outside(place, link, mount, inode or facts.st_ino, kind))
    return outside, covered


def _special(walk: _Walk, process: Process, place: Place, link: str) -> None:
    kind, target, detail = link, 0, ""
    if link == "anon_inode:[pidfd]":
        try:
            info = proc.info(*place)
        except OSError:
            return
        target = int(proc.status("\n".join(info.rest)).get("Pid", "0"))
        detail = "thread" if info.flags & os.O_EXCL else ""
    walk.special.append(Special(place, kind, target, detail))


def _mappings(walk: _Walk, process: Process) -> None:
    pid = process.pid
    for mapping in proc.mappings(proc.read(f"/proc/{pid}/maps")):
        path = mapping.path
        if path.startswith("/SYSV"):
            walk.segments.append((pid, mapping.inode))
        elif path.endswith(proc.DELETED) and path.startswith("/") and not path.startswith(PATHLESS):
            start, _, end = mapping.span.partition("-")
            _deleted(walk, (pid, NO_FD), path, f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}")
        elif not path.startswith("/dev/shm/") and not path.endswith(proc.DELETED) or path.startswith("/secretmem"):
            walk.mapped.append((pid, path))


def _folders(walk: _Walk, process: Process) -> None:
    """The program, the current folder and the root, where they are deleted."""
    for name in ("exe", "cwd", "root"):
        try:
            link = os.readlink(f"/proc/{process.pid}/{name}")
        except OSError:  # a kernel thread has no program
            continue
        if link.endswith(proc.DELETED) and not link.startswith(PATHLESS):
            _deleted(walk, (process.pid, NO_FD), link, f"/proc/{process.pid}/{name}")


def _locks(walk: _Walk, pids: set[int], text: str) -> list[Lock]:
    """Locks that these processes took, and those that name no process (OFD locks, a flock whose taker has ended) on a
    file that one of them has open. /proc/locks: "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF"."""
    found = []
    strays = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[1] == "->":  # a waiter
            continue
        kind, pid, inode = fields[1], int(fields[4]), int(fields[5].rpartition(":")[2])
        if pid in pids:
            found.append(Lock(kind, pid, _path(walk, pid, inode)))
        elif pid < 0 or kind == "FLOCK" and not os.path.exists(f"/proc/{pid}"):
            strays.append((kind, inode))
    if strays:
        inodes = _inodes(walk)
        found += [Lock(kind, *inodes[inode]) for kind, inode in strays if inode in inodes]
    return found


def _path(walk: _Walk, pid: int, inode: int) -> str:
    for (owner, fd), link in walk.links.items():
        if owner == pid and link.startswith("/"):
            try:
                if os.stat(f"/proc/{pid}/fd/{fd}").st_ino == inode:
                    return link
            except OSError:
                continue
    return ""


def _inodes(walk: _Walk) -> dict[int, tuple[int, str]]:
    found = {}
    for (pid, fd), link in walk.links.items():
        if link.startswith("/") and not link.startswith(PATHLESS):
            try:
                found[os.stat(f"/proc/{pid}/fd/{fd}").st_ino] = (pid, link)
            except OSError:
                continue
    return found
