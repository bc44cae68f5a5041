"""Find the inotify, fanotify and timerfd descriptors of a container's processes, running or frozen. Reads only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from grit_runtime.process import inner_pids

from . import fdinfo
from .record import Group, Holder, Instance, Record
from .syscalls import kcmp_file

INOTIFY, FANOTIFY, TIMERFD = "anon_inode:inotify", "anon_inode:[fanotify]", "anon_inode:[timerfd]"
_GONE = (errno.ENOENT, errno.ESRCH, errno.EBADF)

Place = tuple[int, int]  # host pid, fd


def links(pids: Iterable[int]) -> dict[Place, str]:
    """{(pid, fd): link} of every descriptor of these processes. One that ends meanwhile is left out."""
    found: dict[Place, str] = {}
    for pid in pids:
        try:
            folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            for name in os.listdir(folder):
                try:
                    found[pid, int(name)] = os.readlink(name, dir_fd=folder)
                except OSError:
                    continue
        except OSError:
            continue
        finally:
            os.close(folder)
    return found


def group(places: Sequence[Place], order: Callable[[Place, Place], int]) -> list[list[Place]]:
    """Descriptors of the same open file together; `order` answers as kcmp(2): 0 same, 1 less, 2 greater, or raises an
    OSError when one of them is gone (it then stands alone)."""
    groups: list[list[Place]] = []  # in kcmp's order, so that each place costs log n comparisons
    alone: list[list[Place]] = []
    for place in places:
        low, high = 0, len(groups)
        try:
            while low < high:
                middle = (low + high) // 2
                answer = order(place, groups[middle][0])
                if answer == 0:
                    groups[middle].append(place)
                    break
                if answer == 1:
                    high = middle
                else:
                    low = middle + 1
            else:
                groups.insert(low, [place])
        except OSError as error:
            if error.errno not in _GONE:
                raise
            alone.append([place])
    return sorted(groups + alone)


def _order(one: Place, other: Place) -> int:
    return kcmp_file(*one, *other)


def read_fdinfo(places: Sequence[Place]) -> str:
    """The text for the first of these (the same open file) that is still there; "" when all are gone."""
    for pid, fd in places:
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                return file.read()
        except OSError:
            continue
    return ""


def from_links(listing: Mapping[Place, str], pids: Sequence[int] = ()) -> Record:
    """The record from a listing {(pid, fd): link} of all descriptors of all processes of the container."""
    everyone = tuple(pids) or tuple(sorted({pid for pid, _ in listing}))
    by_kind: dict[str, list[Place]] = {INOTIFY: [], FANOTIFY: [], TIMERFD: []}
    for place, link in listing.items():
        if link in by_kind:
            by_kind[link].append(place)
    inner = inner_pids(everyone)
    instances, groups, timers = [], [], []
    for kind, places in by_kind.items():
        for twins in group(sorted(places), _order):
            text = read_fdinfo(twins)
            holders = tuple(Holder(inner[pid], fd, pid) for pid, fd in twins if pid in inner)
            if not text or not holders:
                continue
            if kind == INOTIFY:
                instances.append(Instance(holders, fdinfo.inotify(text)))
            elif kind == FANOTIFY:
                groups.append(fdinfo.fanotify(text)._replace(holders=holders))
            else:
                timers.append(fdinfo.timerfd(text)._replace(holders=holders))
    return Record(tuple(instances), tuple(groups), tuple(timers), min(inner.values(), default=0), everyone)


def find(pids: Sequence[int]) -> Record:
    """The record of a container from its processes' host pids. A running one may change at once: see `settle`."""
    return from_links(links(pids), pids)


def empty(record: Record) -> bool:
    """Whether `detach` and `rearm` have nothing to do for this container."""
    return not (record.watch_count or any(timer.ticking for timer in record.timers))


def permission_groups(record: Record) -> list[Group]:
    """Groups of a class whose listeners may be asked for permission (FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT).

    A process that waits for such an answer is in a killable sleep. Kernels before 6.1 or so don't freeze it there,
    and the freeze then never ends if the listener is frozen first: a freezer must have a time limit when this isn't
    empty.
    """
    from .syscalls import FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT

    return [group for group in record.fanotify if group.flags & (FAN_CLASS_CONTENT | FAN_CLASS_PRE_CONTENT)]
