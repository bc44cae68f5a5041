"""One inotify instance, through a duplicate of its descriptor."""

from __future__ import annotations

import errno
import os
import struct

from . import fdinfo
from .opening import Root, via
from .record import Instance, Problem, Watch
from .syscalls import (
    IN_ALL_EVENTS,
    IN_IGNORED,
    IN_MASK_CREATE,
    INOTIFY_MASK,
    inotify_add_watch,
    inotify_rm_watch,
    inotify_set_next,
    readable,
)

_EVENT = struct.Struct("=iIII")  # linux/inotify.h struct inotify_event: wd, mask, cookie, len; then the name


def watches(fd: int) -> dict[int, Watch]:
    """{wd: Watch} of the instance behind a descriptor of ours."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return {watch.wd: watch for watch in fdinfo.inotify(file.read())}


def drain(fd: int) -> int:
    """Read all that waits; the count of events, those not counted that say that a watch is gone. Nobody else may read
    now."""
    events = 0
    while readable(fd) > 0:
        block = os.read(fd, 65536)
        at = 0
        while at < len(block):
            _, mask, _, length = _EVENT.unpack_from(block, at)
            events += not mask & IN_IGNORED
            at += _EVENT.size + length
    return events


def detach(fd: int, instance: Instance) -> Instance:
    there = watches(fd)
    kept = tuple(watch for watch in instance.watches if watch.wd in there)
    for wd in there:
        try:
            inotify_rm_watch(fd, wd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # gone by itself: its file was deleted from outside
                raise
    following = _next_number(fd)
    return instance._replace(watches=kept, next_wd=following or instance.next_wd, lost=instance.lost + drain(fd))


def _next_number(fd: int) -> int:
    """The number that the next new watch would get, seen by adding one, so that numbers go on as if nothing had been;
    0 if that can't be had. Leaves an event in the queue."""
    try:
        wd = inotify_add_watch(fd, "/proc/self/fd", IN_ALL_EVENTS)
        inotify_rm_watch(fd, wd)
    except OSError:
        return 0
    return wd


def reattach(fd: int, instance: Instance, root: Root) -> list[Problem]:
    problems = []
    there = watches(fd)
    holder = instance.holders[0]
    for watch in sorted(instance.watches):
        present = there.get(watch.wd)
        if present is not None and present.mask == watch.mask:
            continue
        problem = _add(fd, watch, root)
        if problem is not None:
            reason, detail = problem
            problems.append(Problem(reason, "inotify", holder.pid, holder.fd, watch.wd, watch.path, detail))
    following = max([instance.next_wd, *(watch.wd + 1 for watch in instance.watches)])
    if 1 < following < 2**31:
        try:
            inotify_set_next(fd, following)
        except OSError as error:
            problems.append(Problem("failed", "inotify", holder.pid, holder.fd, following, "", str(error)))
    return problems


def _add(fd: int, watch: Watch, root: Root) -> tuple[str, str] | None:
    try:
        file = root.open(watch.path, watch.root)
    except OSError as error:
        return "path-gone", str(error)
    try:
        inotify_set_next(fd, watch.wd)
        wd = inotify_add_watch(fd, via(file), watch.mask & INOTIFY_MASK | IN_MASK_CREATE)
    except FileExistsError as error:
        return "number-taken", f"the inode is watched already: {error}"
    except OSError as error:
        return "failed", str(error)
    finally:
        os.close(file)
    if wd != watch.wd:
        inotify_rm_watch(fd, wd)
        return "number-taken", f"the kernel gave {wd}"
    return None
