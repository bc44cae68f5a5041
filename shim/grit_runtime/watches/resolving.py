"""Give every watch and mark of a record its path, while the container runs, and again, briefly, when it is frozen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence

from grit_runtime.beneath import open_in_root
from grit_runtime.process import host_pids, inner_pids

from . import finding, mounttable
from .manifest import too_many
from .record import Mark, Record, Target, Watch
from .searching import INSIDE, USUAL, Search
from .syscalls import file_handle

Paths = dict[Target, tuple[str, int]]  # target -> path, root

SEARCH_SECONDS = 20.0  # while it runs
SETTLE_SECONDS = 3.0  # while it is frozen


def targets(record: Record) -> set[Target]:
    """The inodes that the record's watches and inode marks are on."""
    watched = {watch.target for instance in record.inotify for watch in instance.watches}
    return watched | {mark.target for group in record.fanotify for mark in group.marks if mark.kind == "inode"}


def known(record: Record) -> Paths:
    """The inodes whose path the record has already."""
    paths = {w.target: (w.path, w.root) for one in record.inotify for w in one.watches if w.path}
    marks = (mark for group in record.fanotify for mark in group.marks if mark.kind == "inode" and mark.path)
    paths.update((mark.target, (mark.path, mark.root)) for mark in marks)
    return paths


def with_paths(
    record: Record, paths: Mapping[Target, tuple[str, int]], mounts: Mapping[int, mounttable.Mount]
) -> Record:
    """The record with these paths filled in; mount marks by the mount's id, file system marks by a mount of the
    device."""
    points = {mount.number: mount.point for mount in mounts.values()}
    devices = {mount.dev: mount.point for mount in reversed(list(mounts.values()))}

    def watch(one: Watch) -> Watch:
        path, root = paths.get(one.target, ("", 0))
        return one._replace(path=path, root=root)

    def mark(one: Mark) -> Mark:
        if one.kind == "mount":
            return one._replace(path=points.get(one.mount, ""), root=0)
        if one.kind == "filesystem":
            return one._replace(path=devices.get(one.target.dev, ""), root=0)
        path, root = paths.get(one.target, ("", 0))
        return one._replace(path=path, root=root)

    return record._replace(
        inotify=tuple(one._replace(watches=tuple(map(watch, one.watches))) for one in record.inotify),
        fanotify=tuple(one._replace(marks=tuple(map(mark, one.marks))) for one in record.fanotify),
    )


def require_resolved(record: Record) -> None:
    """Refuses `watch-not-found`, `fanotify-filesystem-mark` or `fanotify-mark-unknown` for the first watch or mark
    without a path, and `watches-too-many` for a record too large to be read back."""
    from ..checks import refuse

    def device(dev: int) -> str:
        return f"{dev >> 20}:{dev & 0xFFFFF}"

    if too_many(record):
        raise refuse("watches-too-many", count=record.watch_count)
    for group in record.fanotify:
        who = {"pid": group.holders[0].pid, "fd": group.holders[0].fd}
        if group.unknown:
            raise refuse("fanotify-mark-unknown", line=group.unknown[0], **who)
        for mark in group.marks:
            if not mark.path and mark.kind == "filesystem":
                raise refuse("fanotify-filesystem-mark", dev=device(mark.target.dev), **who)
    kinds = [("inotify watch", one.holders[0], w.target, w.path) for one in record.inotify for w in one.watches]
    kinds += [("fanotify mark", one.holders[0], m.target, m.path) for one in record.fanotify for m in one.marks]
    for what, holder, target, path in kinds:
        if not path:
            searched = "open descriptors and the mounts of that device were searched"
            facts = {"ino": target.ino, "dev": device(target.dev), "searched": searched}
            raise refuse("watch-not-found", what=what, pid=holder.pid, fd=holder.fd, **facts)


def resolve(record: Record, init: int, limit: float = SEARCH_SECONDS, frozen: bool = False) -> Record:
    """The record with the paths that could be found; those it has are kept. `init`: host pid of the container's first
    process.

    Never refuses: a file may be on its way out while the container runs. `require_resolved` does, and `settle` calls
    it. `limit` bounds the seconds spent. `frozen` keeps away from what a frozen process would have to answer: FUSE, and
    where the record has permission groups the reading of any folder. Reading a folder is an event (IN_OPEN and others)
    to whoever watches it, so little is read in vain: guesses come first, then only file systems with a watch on them.
    """
    paths = known(record)
    left = targets(record) - paths.keys()
    mounts = mounttable.read(init)
    if left:
        deadline = time.monotonic() + limit
        listing = finding.links(record.pids or (init,))
        inner = inner_pids(record.pids or (init,))
        reading = not (frozen and finding.permission_groups(record))
        paths.update(_by_descriptor(left, listing, inner, mounts))
        left -= paths.keys()
        for pid in (init, *_other_roots(init, record)):
            if not left:
                break
            try:
                search = Search(pid, mounts if pid == init else mounttable.read(pid), left, deadline, frozen)
            except OSError:
                continue  # it has ended
            try:
                _run(search, listing, reading)
            finally:
                search.close()
            number = 0 if pid == init else inner.get(pid, -1)
            if number >= 0:
                paths.update((target, (path, number)) for target, path in search.found.items())
            left -= paths.keys()
    init_inner = inner_pids(record.pids or (init,)).get(init, record.init)
    return with_paths(record, paths, mounts)._replace(init=init_inner)


def _run(search: Search, listing: Mapping[finding.Place, str], reading: bool) -> None:
    """From the cheap to the dear; each step ends at once when nothing is left."""
    opened = sorted({link for link in listing.values() if link.startswith("/")})
    folders = dict.fromkeys([*_working_folders(listing), *(os.path.dirname(link) for link in opened), *USUAL])
    search.guess([*(mount.point for mount in search.mounts.values()), *opened, *folders])
    if reading:
        search.guess_entries(folders)
        search.walk()
        search.walk(by_handle=True)


def _working_folders(listing: Mapping[finding.Place, str]) -> list[str]:
    found = []
    for pid in sorted({pid for pid, _ in listing}):
        try:
            found.append(os.readlink(f"/proc/{pid}/cwd"))
        except OSError:
            continue
    return found


def _by_descriptor(
    left: Iterable[Target],
    listing: Mapping[finding.Place, str],
    inner: Mapping[int, int],
    mounts: Mapping[int, mounttable.Mount],
) -> Paths:
    """Inodes without a name: reached through a descriptor that some process of the container has open."""
    wanted = {(target.kind, target.handle): target for target in left}
    numbers = {target.ino: target for target in left}
    found: Paths = {}
    for (pid, fd), link in sorted(listing.items()):
        if pid not in inner or (link.startswith("/") and not link.endswith(" (deleted)")):
            continue
        path = f"/proc/{pid}/fd/{fd}"
        try:
            handle = file_handle(-1, path, follow=True)
            target = wanted.get((handle.kind, handle.data))
            dev = mounts[handle.mount].dev if handle.mount in mounts else _device(path)
            same = target is not None and target.dev == dev
        except OSError:
            try:
                target = numbers.get(os.stat(path).st_ino)
                same = target is not None and target.dev == _device(path)
            except OSError:
                continue
        if same and target is not None:
            found.setdefault(target, (f"FD:{inner[pid]}:{fd}", 0))
    return found


def _device(path: str) -> int:
    dev = os.stat(path).st_dev
    return os.major(dev) << 20 | os.minor(dev)


def _view(pid: int) -> tuple[str, int, int] | None:
    try:
        root = os.stat(f"/proc/{pid}/root")
        return os.readlink(f"/proc/{pid}/ns/mnt"), root.st_dev, root.st_ino
    except OSError:
        return None


def _other_roots(init: int, record: Record) -> list[int]:
    """Holders whose root or mount namespace is not the init's (chroot, a sandbox inside the container), one for
    each."""
    views = {_view(init), None}
    found = []
    for holders in record.holders:
        for holder in holders:
            if holder.host and (view := _view(holder.host)) not in views:
                views.add(view)
                found.append(holder.host)
    return found


def settle(
    record: Record,
    pids: Sequence[int] | Mapping[finding.Place, str],
    init: int,
    limit: float = SETTLE_SECONDS,
) -> Record:
    """The record of the now frozen container: found again; a path of the earlier `record` is kept where it still
    leads to the same inode, the others are looked for again. Refuses as `require_resolved` does."""
    listing = pids if isinstance(pids, Mapping) else finding.links(pids)
    pids = sorted({init, *(pid for pid, _ in listing)} if isinstance(pids, Mapping) else {init, *pids})
    fresh = finding.from_links(listing, pids)
    present = targets(fresh)
    old = {target: place for target, place in known(record).items() if target in present}
    mounts = mounttable.read(init)
    fresh = resolve(with_paths(fresh, _confirmed(old, init, pids, mounts), mounts), init, limit, frozen=True)
    require_resolved(fresh)
    return fresh


def _confirmed(old: Paths, init: int, pids: Sequence[int], mounts: dict[int, mounttable.Mount]) -> Paths:
    hosts = host_pids(pids)
    views: dict[int, Search] = {}
    good: Paths = {}
    try:
        for target, (path, number) in old.items():
            if path.startswith("FD:"):
                pid, fd = map(int, path[3:].split(":"))
                if pid in hosts and _by_descriptor([target], {(hosts[pid], fd): ""}, {hosts[pid]: pid}, mounts):
                    good[target] = path, number
                continue
            if number not in views:
                host = hosts.get(number, 0) if number else init
                if not host:
                    continue
                views[number] = Search(host, mounts if host == init else mounttable.read(host), old, 0.0, True)
            search = views[number]
            mount = mounttable.below(search.points, path)
            if mount is not None and mount.served:
                good[target] = path, number  # not asked: its server may be frozen
                continue
            try:
                file = open_in_root(search.root, path, os.O_PATH | os.O_NOFOLLOW, INSIDE)
            except OSError:
                continue
            try:
                if search.identify(file, "") == target:
                    good[target] = path, number
            finally:
                os.close(file)
    finally:
        for search in views.values():
            search.close()
    return good
