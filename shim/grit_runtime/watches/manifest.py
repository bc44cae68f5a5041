"""The record as JSON in a checkpoint's manifest, and back. What comes back was written by a stranger: everything is
bounded."""

from __future__ import annotations

import os
from typing import NoReturn

from .record import Group, Holder, Instance, Mark, Record, Target, Timer, Watch
from .syscalls import (
    FANOTIFY_MASK,
    INOTIFY_MASK,
    MARK_FLAGS,
    TFD_TIMER_ABSTIME,
    TFD_TIMER_CANCEL_ON_SET,
)

VERSION = 1
U16, U32, U63, U64 = 2**16, 2**32, 2**63, 2**64
INT = 2**31 - 1
MAX_PID = 2**22  # PID_MAX_LIMIT, linux/threads.h
MAX_FD = 2**30  # sysctl fs.nr_open cannot go beyond
MAX_WATCHES = 2**20  # of a record; the kernel's own default limit for a user
MAX_HOLDERS = 2**20  # of a record: descriptors, counted for each process
MARK_KINDS = ("inode", "mount", "filesystem")
CLOCKS = (0, 1, 7, 8, 9)  # linux/time.h: REALTIME, MONOTONIC, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM
PATH_MAX = 4096  # linux/limits.h


def _holders(holders: tuple[Holder, ...]) -> list[list[int]]:
    return [[holder.pid, holder.fd] for holder in holders]


def to_json(record: Record) -> dict[str, object]:
    """Plain dicts, lists, numbers and strings; `from_json` reads them. Left out are host pids, which mean
    nothing later, and timers that `rearm` never touches."""
    return {
        "version": VERSION,
        "init": record.init,
        "inotify": [
            {
                "holders": _holders(one.holders),
                "next_wd": one.next_wd,
                "lost": one.lost,
                "watches": [[w.wd, w.mask, list(w.target), w.path, w.root] for w in one.watches],
            }
            for one in record.inotify
        ],
        "fanotify": [
            {
                "holders": _holders(one.holders),
                "flags": one.flags,
                "event_flags": one.event_flags,
                "lost": one.lost,
                "marks": [
                    [m.kind, m.flags, m.mask, m.ignored, list(m.target), m.mount, m.path, m.root] for m in one.marks
                ],
            }
            for one in record.fanotify
        ],
        "timers": [
            {
                "holders": _holders(one.holders),
                "clock": one.clock,
                "ticks": one.ticks,
                "flags": one.flags,
                "value": one.value,
                "interval": one.interval,
                "due": one.due,
            }
            for one in record.timers
            if one.ticking
        ],
    }


def _bad(what: str) -> NoReturn:
    from ..checks import refuse

    raise refuse("watches-record-invalid", what=what)


def _number(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:  # bool is an int too, and is not meant
        _bad(f"{what} is {value!r}")
    return value


def _bits(value: object, allowed: int, what: str) -> int:
    number = _number(value, 0, U64 - 1, what)
    if number & ~allowed:
        _bad(f"{what} is {number:#x}")
    return number


def _list(value: object, most: int, what: str, length: int | None = None) -> list[object]:
    if not isinstance(value, list) or len(value) > most or (length is not None and len(value) != length):
        _bad(f"{what} is not a list of the right length")
    return value


def _dict(value: object, keys: str, what: str) -> dict[str, object]:
    if not isinstance(value, dict) or value.keys() != set(keys.split()):
        _bad(f"{what} has not exactly the keys {keys}")
    return value


def _read_holders(value: object) -> tuple[Holder, ...]:
    pairs = [_list(pair, 2, "a holder", 2) for pair in _list(value, MAX_HOLDERS, "holders")]
    if not pairs:
        _bad("holders is empty")
    return tuple(Holder(_number(p, 1, MAX_PID, "a pid"), _number(f, 0, MAX_FD, "a descriptor")) for p, f in pairs)


def _read_target(value: object) -> Target:
    dev, ino, kind, handle = _list(value, 4, "a target", 4)
    if not isinstance(handle, str) or len(handle) > 256 or handle.strip("0123456789abcdef"):
        _bad("a file handle is not hex")
    return Target(
        _number(dev, 0, U32 - 1, "dev"), _number(ino, 0, U64 - 1, "ino"), _number(kind, 0, U32 - 1, "kind"), handle
    )


def check_path(value: object) -> str:
    """A path as `resolve` makes them: absolute and without ".", ".." or empty components, or FD:pid:fd."""
    if not isinstance(value, str) or "\0" in value or len(value) > PATH_MAX:
        _bad("a path is not a string that a path can be")
    if value.startswith("FD:"):
        pid, _, fd = value[3:].partition(":")
        if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in (pid, fd)):
            _bad(f"a path is {value!r}")
        _number(int(pid), 1, MAX_PID, "a pid")
        _number(int(fd), 0, MAX_FD, "a descriptor")
        return value
    try:
        size = len(os.fsencode(value))
    except UnicodeEncodeError:
        _bad("a path has characters that no file name has")
    parts = value[1:].split("/")
    if size >= PATH_MAX or not value.startswith("/") or (value != "/" and not {"", ".", ".."}.isdisjoint(parts)):
        _bad(f"a path is {value!r}")
    return value


def _read_watch(value: object) -> Watch:
    wd, mask, target, path, root = _list(value, 5, "a watch", 5)
    return Watch(
        _number(wd, 1, INT, "wd"),
        _bits(mask, INOTIFY_MASK, "mask"),
        _read_target(target),
        check_path(path),
        _number(root, 0, MAX_PID, "root"),
    )


def _read_mark(value: object) -> Mark:
    kind, flags, mask, ignored, target, mount, path, root = _list(value, 8, "a mark", 8)
    if not isinstance(kind, str) or kind not in MARK_KINDS:
        _bad(f"a mark is of the kind {kind!r}")
    return Mark(
        kind,
        _bits(flags, MARK_FLAGS, "mark flags"),
        _bits(mask, FANOTIFY_MASK, "mark mask"),
        _bits(ignored, FANOTIFY_MASK, "ignored mask"),
        _read_target(target),
        _number(mount, 0, INT, "mount"),
        check_path(path),
        _number(root, 0, MAX_PID, "root"),
    )


def _read_instance(value: object) -> Instance:
    row = _dict(value, "holders next_wd lost watches", "an inotify instance")
    watches = tuple(_read_watch(watch) for watch in _list(row["watches"], MAX_WATCHES, "watches"))
    if len({watch.wd for watch in watches}) != len(watches):
        _bad("a watch number comes twice in an instance")
    numbers = _number(row["next_wd"], 0, INT, "next_wd"), _number(row["lost"], 0, U63, "lost")
    return Instance(_read_holders(row["holders"]), watches, *numbers)


def _read_group(value: object) -> Group:
    row = _dict(value, "holders flags event_flags lost marks", "a fanotify group")
    flags, event_flags = (_number(row[name], 0, U32 - 1, name) for name in ("flags", "event_flags"))
    marks = tuple(_read_mark(mark) for mark in _list(row["marks"], MAX_WATCHES, "marks"))
    return Group(_read_holders(row["holders"]), flags, event_flags, marks, (), _number(row["lost"], 0, U63, "lost"))


def _read_timer(value: object) -> Timer:
    row = _dict(value, "holders clock ticks flags value interval due", "a timer")
    if row["clock"] not in CLOCKS or type(row["clock"]) is not int:
        _bad(f"a timer's clock is {row['clock']!r}")
    flags = _bits(row["flags"], TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, "timer flags")
    ticks = _number(row["ticks"], 0, U64 - 1, "ticks")
    value_ns, interval, due = (_number(row[name], 0, U63 - 1, name) for name in ("value", "interval", "due"))
    return Timer(_read_holders(row["holders"]), row["clock"], ticks, flags, value_ns, interval, due)


def too_many(record: Record) -> bool:
    """Whether `from_json` would refuse the record for its size."""
    ticking = [timer.holders for timer in record.timers if timer.ticking]
    holders = [*(one.holders for one in record.inotify), *(one.holders for one in record.fanotify), *ticking]
    return record.watch_count > MAX_WATCHES or sum(map(len, holders)) > MAX_HOLDERS


def from_json(value: object) -> Record:
    """The record that `to_json` wrote. Refuses `watches-record-invalid`, naming the first thing that is out of
    bounds."""
    row = _dict(value, "version init inotify fanotify timers", "the record")
    if type(row["version"]) is not int or row["version"] != VERSION:
        _bad(f"the version is {row['version']!r}")
    record = Record(
        tuple(_read_instance(one) for one in _list(row["inotify"], MAX_HOLDERS, "inotify")),
        tuple(_read_group(one) for one in _list(row["fanotify"], MAX_HOLDERS, "fanotify")),
        tuple(_read_timer(one) for one in _list(row["timers"], MAX_HOLDERS, "timers")),
        _number(row["init"], 0, MAX_PID, "init"),
    )
    if too_many(record):
        _bad("there are too many watches or descriptors")
    return record
