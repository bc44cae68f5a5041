"""Everything that is read from a folder of CRIU's images, in one place: what other modules use.

All functions take the folder and refuse with `image-missing`, `image-truncated` or `image-malformed`. The folder itself
may be named through /proc/self/fd/N; symbolic links inside it are never followed.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.criu import imagefile
from grit_runtime.criu.complete import complete, parent, problems
from grit_runtime.criu.imagefile import Path, entries, first, rewrite, rewritten
from grit_runtime.criu.inventory import Inventory, Namespaces, inventory, namespaces, processes
from grit_runtime.criu.mountpoints import Mount, external_keys, mask, masks, mounts, readonly, root, unexpected
from grit_runtime.criu.openfiles import OpenFile, Remap, Socket, addresses, open_files, remaps, sockets, watches
from grit_runtime.criu.tasks import Capabilities, Credentials, Memory, Task, capabilities, memory, tasks

__all__ = [
    "Capabilities", "Credentials", "Inventory", "Memory", "Mount", "Namespaces", "OpenFile", "Remap", "Socket", "Stats",
    "Timer", "addresses", "capabilities", "cgroups", "complete", "external_keys", "hostname", "inventory", "ipc_files",
    "mask", "masks", "memory", "mounts", "namespaces", "open_files", "parent", "problems", "processes", "readonly",
    "remaps", "root", "set_hostname", "sockets", "stats", "tasks", "timers", "unexpected", "watches", "Task",
    "with_hostname",
]  # fmt: skip


class Stats(NamedTuple):
    """What CRIU measured of a dump: times in microseconds, counts of pages."""

    freezing: int
    frozen: int
    memory_dump: int
    memory_write: int
    pages_scanned: int
    pages_written: int


class Timer(NamedTuple):
    """A timerfd: times in nanoseconds, `clock` as CLOCK_*; `ticks` expirations nobody has read yet."""

    id: int
    clock: int
    ticks: int
    remaining: int
    interval: int


def stats(folder: Path) -> Stats | None:
    """From stats-dump, which CRIU writes into its work folder: None when it isn't here."""
    if not imagefile.exists(folder, "stats-dump"):
        return None
    dump = first(os.path.join(folder, "stats-dump")).message(1)
    return Stats(*(dump.integer(number) for number in (1, 2, 3, 4, 5, 7))) if dump else None


def timers(folder: Path) -> list[Timer]:
    """The timerfds of the image."""
    found = [file.message for file in open_files(folder) if file.kind == "timerfd"]
    return [
        Timer(
            id=entry.integer(1),
            clock=entry.integer(4),
            ticks=entry.integer(5),
            remaining=entry.integer(7) * 1_000_000_000 + entry.integer(8),
            interval=entry.integer(9) * 1_000_000_000 + entry.integer(10),
        )
        for entry in found
    ]


def hostname(folder: Path) -> str | None:
    """The host name in the image's uts namespace; None when the tasks used the host's."""
    name = hostname_file(folder)
    return first(os.path.join(folder, name)).text(1) if name else None


def hostname_file(folder: Path) -> str | None:
    return next((name for name in imagefile.names(folder) if imagefile.kind(name) == "utsns"), None)


def set_hostname(source: Path, target: Path, name: str) -> None:
    """Write the uts namespace image `source` to `target` (files; they may be the same) with another host name.

    CRIU sets the name from this image in the namespace that it finds, the pod's live one included.
    """
    rewrite(source, target, lambda entry: entry.replaced(1, name.encode("utf-8", "surrogateescape")))


def with_hostname(data: bytes, name: str) -> bytes:
    """The bytes of a uts namespace image, with another host name."""
    change = name.encode("utf-8", "surrogateescape")
    return rewritten(data, "utsns-0.img", lambda entry: entry.replaced(1, change))


def ipc_files(folder: Path) -> list[str]:
    """Names of the files that put SysV shared memory, semaphores and message queues into the ipc namespace."""
    return [name for name in imagefile.names(folder) if imagefile.kind(name) in ("ipcns-shm", "ipcns-sem", "ipcns-msg")]


def cgroups(folder: Path) -> list[tuple[str, str]]:
    """(controller, path) of all cgroups that tasks of the image were in."""
    if not imagefile.exists(folder, "cgroup.img"):
        return []
    result = []
    for entry in entries(os.path.join(folder, "cgroup.img")):
        for group in entry.messages(1):
            result += [(member.text(1), member.text(2)) for member in group.messages(2)]
    return sorted(set(result))
