"""One process as /proc shows it. A process may end while it is read: then OSError, and the walk leaves it out."""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.look.facts import Process

NAMESPACES = ("mnt", "pid", "user", "ipc", "net", "uts", "cgroup", "time_for_children")
DELETED = " (deleted)"


def read(path: str) -> str:
    """A small file of /proc, whole."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode(errors="surrogateescape")
    finally:
        os.close(fd)


def stat(text: str) -> tuple[str, str, int, int, int]:
    """(name, state, parent, session, tty_nr) of /proc/PID/stat; the name may hold spaces and parentheses."""
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return name, fields[0], int(fields[1]), int(fields[3]), int(fields[4])


def status(text: str) -> dict[str, str]:
    """The fields of /proc/PID/status by their names."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def process(pid: int) -> Process:
    """Everything about a process but its descriptors and mappings."""
    base = f"/proc/{pid}"
    name, state, parent, session, terminal = stat(read(f"{base}/stat"))
    facts = status(read(f"{base}/status"))
    inner = facts["NSpid"].split()
    sessions = facts.get("NSsid", "").split()
    namespaces = {}
    for kind in NAMESPACES:
        try:
            namespaces[kind] = os.readlink(f"{base}/ns/{kind}")
        except OSError:  # a zombie has most of them no more; an old kernel has no time namespaces
            pass
    try:
        label = read(f"{base}/attr/current").rstrip("\0\n")
    except OSError:
        label = ""
    return Process(
        pid=pid, inner=int(inner[-1]), parent=parent, session=int(sessions[-1]) if sessions else session, state=state,
        terminal=terminal, tracer=int(facts.get("TracerPid", "0")), seccomp=int(facts.get("Seccomp", "0")),
        threads=int(facts.get("Threads", "1")), memory=sum(_kib(facts, f) for f in ("RssAnon", "RssShmem", "VmSwap")),
        label=label, name=name, depth=len(inner), namespaces=namespaces, stopped=_stopped(base, state),
    )  # fmt: skip


def _stopped(base: str, state: str) -> bool:
    """State T; frozen by cgroup version 1 it reads D, and only the place in the kernel tells."""
    if state != "D":
        return state == "T"
    try:
        return read(f"{base}/wchan").startswith("do_signal_stop")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The children of the first thread of a process (/proc/PID/task/TID/children), empty where that can't be read."""
    try:
        return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]
    except OSError:
        return []


def _kib(facts: dict[str, str], name: str) -> int:
    return int(facts.get(name, "0").split()[0]) << 10


def links(pid: int) -> dict[int, str]:
    """Descriptor -> what it links to."""
    folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = {}
        for name in os.listdir(folder):
            try:
                found[int(name)] = os.readlink(name, dir_fd=folder)
            except OSError:  # closed meanwhile
                pass
        return found
    finally:
        os.close(folder)


class Mapping(NamedTuple):
    """One line of /proc/PID/maps: `span` as in its first column; `device` as in maps ("08:01"), `path` as there."""

    span: str
    device: str
    inode: int
    path: str


def mappings(text: str) -> list[Mapping]:
    """Those lines of a /proc/PID/maps that are no file with a name: deleted ones, devices, rings."""
    found: list[Mapping] = []
    if not any(mark in text for mark in (DELETED, "anon_inode:", "/dev/", "[uprobes]", "/secretmem")):
        return found
    last = None
    for line in text.splitlines():
        at = line.find("/", 60)
        if at < 0:
            at = line.find("anon_inode:", 60)
        if at < 0:
            at = line.find("[uprobes]", 60)
        if at < 0:
            continue
        path = line[at:]
        if path.endswith(DELETED) or path.startswith(("anon_inode:", "/dev/", "[uprobes]", "/secretmem")):
            span, _, _, device, inode = line[:at].split()[:5]
            if (device, inode, path) != last:
                found.append(Mapping(span, device, int(inode), path))
                last = (device, inode, path)
    return found


class Info(NamedTuple):
    """/proc/PID/fdinfo/FD: the mount and inode of the open file and its other lines."""

    mount: int
    inode: int
    flags: int
    rest: list[str]


def info(pid: int, fd: int) -> Info:
    """What fdinfo says of a descriptor; `inode` is 0 on kernels before 5.14."""
    mount = inode = flags = 0
    rest = []
    for line in read(f"/proc/{pid}/fdinfo/{fd}").splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            mount = int(value)
        elif name == "ino":
            inode = int(value)
        elif name == "flags":
            flags = int(value, 8)
        elif name != "pos":
            rest.append(line)
    return Info(mount, inode, flags, rest)
