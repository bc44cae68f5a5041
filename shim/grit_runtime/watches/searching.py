"""Find watched inodes below a process's root: cheap guesses first, then a walk of the mounts of their devices.

Nothing here follows a symbolic link or a magic link, and nothing leaves the root: the container may rename things
while we look. A candidate counts only when its file handle is the one that fdinfo shows for the watch.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping

from grit_runtime.beneath import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    open_in_root,
)

from .mounttable import Mount, below, by_point
from .record import Target
from .syscalls import file_handle

NO_LINKS = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
INSIDE = RESOLVE_IN_ROOT | NO_LINKS
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME

# Where programs watch: looked at before anything is walked.
USUAL = (
    "/", "/etc", "/tmp", "/run", "/var", "/var/log", "/var/run", "/var/lib", "/root", "/home", "/opt", "/app",
    "/srv", "/data", "/workspace", "/config", "/usr/share/zoneinfo", "/dev", "/dev/shm", "/dev/input", "/dev/pts",
    "/proc", "/proc/self", "/proc/sys/kernel", "/sys/fs/cgroup", "/var/run/secrets/kubernetes.io/serviceaccount",
)  # fmt: skip
# Folders in procfs with as many entries as a process has threads, descriptors and mappings: walked last
_PROC_LAST = frozenset(("task", "fd", "fdinfo", "map_files", "net", "attr", "ns"))


class Search:
    """The root of process `pid` and what is still to be found below it. `found` fills up as guesses and walks go on."""

    def __init__(
        self, pid: int, mounts: Mapping[int, Mount], targets: Iterable[Target], deadline: float, frozen: bool
    ) -> None:
        self.root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.mounts, self.deadline, self.frozen = mounts, deadline, frozen
        self.points = by_point(mounts.values())
        self.left: set[Target] = set()
        self.found: dict[Target, str] = {}
        self.late = False
        self.devices: dict[int, int] = {}  # device -> how many are left on it
        self.inodes: dict[int, list[Target]] = {}
        self.handles: dict[tuple[int, str], list[Target]] = {}
        for target in set(targets):
            self.left.add(target)
            self.devices[target.dev] = self.devices.get(target.dev, 0) + 1
            self.inodes.setdefault(target.ino, []).append(target)
            self.handles.setdefault((target.kind, target.handle), []).append(target)

    def close(self) -> None:
        os.close(self.root)

    def _take(self, target: Target, path: str) -> None:
        self.found[target] = path
        self.left.discard(target)
        self.devices[target.dev] -= 1
        self.inodes[target.ino].remove(target)
        if not self.inodes[target.ino]:
            del self.inodes[target.ino]
        self.handles[target.kind, target.handle].remove(target)

    def _wanted(self, mount: Mount | None) -> bool:
        return mount is not None and self.devices.get(mount.dev, 0) > 0 and not (self.frozen and mount.served)

    def out_of_time(self) -> bool:
        self.late = self.late or time.monotonic() > self.deadline
        return self.late

    def identify(self, folder: int, name: str) -> Target | None:
        """The target that `name` in the open `folder` is ("": the folder, or file, itself), or None."""
        try:
            handle = file_handle(folder, name)
        except OSError:
            return self._by_number(folder, name)
        mount = self.mounts.get(handle.mount)
        for target in self.handles.get((handle.kind, handle.data), ()):
            if mount is not None and mount.dev == target.dev:
                return target
        return self._by_number(folder, name) if self.handles.get((0, "")) else None

    def _by_number(self, folder: int, name: str) -> Target | None:
        """By device and inode number: for watches without a handle, and for kernels before 6.5 where overlay, proc
        and others give none to compare (and fdinfo only one made of the number)."""
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False) if name else os.fstat(folder)
        except OSError:
            return None
        dev = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
        for target in self.inodes.get(status.st_ino, ()):
            # an overlay over several file systems shows its files with other devices than its own
            if target.dev == dev or any(m.dev == target.dev and m.kind == "overlay" for m in self.mounts.values()):
                return target
        return None

    def guess(self, paths: Iterable[str]) -> None:
        """Try each path itself; an open file's name, or a folder's."""
        for path in paths:
            if not self.left or self.out_of_time():
                return
            if not self._wanted(below(self.points, path)):
                continue
            try:
                file = open_in_root(self.root, path, os.O_PATH | os.O_NOFOLLOW, INSIDE)
            except OSError:
                continue
            try:
                if target := self.identify(file, ""):
                    self._take(target, path)
            finally:
                os.close(file)

    def guess_entries(self, folders: Iterable[str]) -> None:
        """Try the entries of each folder, by the inode number that the folder itself tells."""
        for path in folders:
            if not self.left or self.out_of_time():
                return
            if not self._wanted(below(self.points, path)):
                continue
            try:
                folder = open_in_root(self.root, path, FOLDER, INSIDE)
            except OSError:
                continue
            try:
                self._entries(folder, path, False)
            except OSError:
                continue
            finally:
                os.close(folder)

    def _entries(self, folder: int, path: str, by_handle: bool) -> list[str]:
        """Compare all entries of an open folder; returns the names of the folders among them."""
        below_it = []
        prefix = path if path == "/" else path + "/"
        inodes = self.inodes
        with os.scandir(folder) as entries:
            for entry in entries:
                if (by_handle or entry.inode() in inodes) and (target := self.identify(folder, entry.name)):
                    self._take(target, prefix + entry.name)
                if entry.is_dir(follow_symlinks=False):
                    below_it.append(entry.name)
        return below_it

    def walk(self, by_handle: bool = False) -> None:
        """Walk every mount of a wanted device, nearest folders first. `by_handle` compares the handle of every entry,
        for file systems whose folders tell other inode numbers than their inodes have (overlay over several file
        systems)."""
        walks = [self._walk(mount, by_handle) for mount in self.mounts.values() if self._wanted(mount)]
        try:
            while walks:  # a folder of each in turn: a small volume isn't kept waiting by a huge one
                walks = [walk for walk in walks if next(walk, False)]
        finally:
            for walk in walks:
                walk.close()

    def _walk(self, mount: Mount, by_handle: bool) -> Generator[bool, None, None]:
        try:
            top = open_in_root(self.root, mount.point, os.O_PATH | os.O_DIRECTORY, INSIDE)
        except OSError:
            return  # a mounted file: the guesses had it
        try:
            if mount_of(top) not in (mount.number, None):
                return  # another mount lies over it
            queues: tuple[deque[str], ...] = (deque(["."]), deque(), deque())
            wait = self._proc_rank if mount.kind == "proc" else self._rank
            prefix = "" if mount.point == "/" else mount.point
            while self.devices.get(mount.dev, 0) > 0 and not self.out_of_time():
                queue = next((queue for queue in queues if queue), None)
                if queue is None:
                    return
                path = queue.popleft()
                try:
                    folder = open_in_root(top, path, FOLDER, RESOLVE_BENEATH | RESOLVE_NO_XDEV | NO_LINKS)
                except OSError:
                    continue  # removed, a mountpoint, or not readable by anybody
                here = prefix + path[1:] or "/"
                try:
                    for name in self._entries(folder, here, by_handle):
                        queues[wait(path, name)].append(f"{path}/{name}")
                except OSError:
                    continue
                finally:
                    os.close(folder)
                yield True
        finally:
            os.close(top)

    @staticmethod
    def _rank(path: str, name: str) -> int:
        return 0

    @staticmethod
    def _proc_rank(path: str, name: str) -> int:
        return 2 if name in _PROC_LAST and path != "." else 1 if name.isdigit() else 0


def mount_of(fd: int) -> int | None:
    """The id of the mount that an open descriptor of ours is on (fdinfo's mnt_id)."""
    try:
        with open(f"/proc/self/fdinfo/{fd}") as text:
            for line in text:
                if line.startswith("mnt_id:"):
                    return int(line[7:])
    except OSError:
        pass
    return None
