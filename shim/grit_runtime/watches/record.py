"""What is known of a container's watches and timers: pure values. `manifest.py` beside this writes and reads them."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A watched inode as fdinfo shows it: `dev` is the kernel's dev_t (major << 20 | minor), `kind` and `handle` the
    type and the hex bytes of its file handle (handle "" where the file system gives none)."""

    dev: int
    ino: int
    kind: int
    handle: str


class Watch(NamedTuple):
    """An inotify watch. `path` is "" until resolved; then "/path" below the root of process `root` (in-container pid;
    0: the container's init), or "FD:pid:fd", an open descriptor of an in-container process (a deleted file, a
    pipe)."""

    wd: int
    mask: int
    target: Target
    path: str = ""
    root: int = 0


class Mark(NamedTuple):
    """A fanotify mark. `kind`: inode, mount or filesystem. `flags`: FAN_MARK_IGNORED_SURV_MODIFY (0x40), EVICTABLE
    (0x200), IGNORE (0x400). `path` and `root` as for a Watch. `mount` is the mount's id on the node it was read
    on."""

    kind: str
    flags: int
    mask: int
    ignored: int
    target: Target
    mount: int = 0
    path: str = ""
    root: int = 0


class Holder(NamedTuple):
    """A process that has the open file: its pid in the container, the descriptor, and the host's pid (0: not known
    here)."""

    pid: int
    fd: int
    host: int = 0


class Instance(NamedTuple):
    """An inotify instance, once for all its holders. `next_wd`: the number the next new watch would get (0: not known).
    `lost`: events that waited unread when the watches were taken away; they are gone."""

    holders: tuple[Holder, ...]
    watches: tuple[Watch, ...]
    next_wd: int = 0
    lost: int = 0


class Group(NamedTuple):
    """A fanotify group. `flags` and `event_flags` are those of fanotify_init(2). `unknown`: marks of a kind that
    can't be put back, as fdinfo shows them."""

    holders: tuple[Holder, ...]
    flags: int
    event_flags: int
    marks: tuple[Mark, ...]
    unknown: tuple[str, ...] = ()
    lost: int = 0


class Timer(NamedTuple):
    """A timerfd; times in ns. `flags` are those of timerfd_settime(2). `value`: what remains, also for an absolute
    timer. `due`: for a timer set to wall-clock time, when it would next expire (CLOCK_REALTIME), else 0."""

    holders: tuple[Holder, ...]
    clock: int
    ticks: int
    flags: int
    value: int
    interval: int
    due: int = 0

    @property
    def ticking(self) -> bool:
        """Periodic and armed, or expired and not read since (a disarmed timer has no ticks: settime clears them)."""
        return self.interval > 0 and (self.value > 0 or self.ticks > 0)


class Record(NamedTuple):
    """Everything of one container. `init` is the in-container pid of its first process, `pids` the host's pids it was
    made from (not written to the manifest)."""

    inotify: tuple[Instance, ...] = ()
    fanotify: tuple[Group, ...] = ()
    timers: tuple[Timer, ...] = ()
    init: int = 0
    pids: tuple[int, ...] = ()

    @property
    def holders(self) -> list[tuple[Holder, ...]]:
        """The holders of each open file."""
        files = [one.holders for one in self.inotify] + [one.holders for one in self.fanotify]
        return files + [one.holders for one in self.timers]

    @property
    def watch_count(self) -> int:
        """Watches and marks together: what `detach` takes away."""
        return sum(len(i.watches) for i in self.inotify) + sum(len(g.marks) for g in self.fanotify)


class Problem(NamedTuple):
    """One watch, mark or timer that could not be put back, or not as it was: for the log. `reason` is a stable name:
    descriptor-gone, path-gone, number-taken, not-allowed, failed."""

    reason: str
    what: str
    pid: int
    fd: int
    wd: int = 0
    path: str = ""
    detail: str = ""

    def __str__(self) -> str:
        number = f" watch {self.wd}" if self.wd else ""
        where = f"{self.what} of process {self.pid} fd {self.fd}{number} {self.path!r}"
        return f"{where}: {self.reason} {self.detail}".rstrip()
