"""What /proc/PID/fdinfo/FD says of inotify, fanotify and timerfd descriptors (Documentation/filesystems/proc.rst,
3.8)."""

from __future__ import annotations

from .record import Group, Mark, Target, Timer, Watch
from .syscalls import FANOTIFY_MASK, INOTIFY_MASK, MARK_FLAGS

_INOTIFY, _FANOTIFY = "inotify ", "fanotify "
_NOWHERE = Target(0, 0, 0, "")


def _fields(line: str) -> dict[str, str]:
    return dict(word.split(":", 1) for word in line.split() if ":" in word)


def _target(fields: dict[str, str]) -> Target:
    kind, data = fields.get("fhandle-type", "0"), fields.get("f_handle", "")
    return Target(int(fields["sdev"], 16), int(fields["ino"], 16), int(kind, 16), data)


def inotify(text: str) -> tuple[Watch, ...]:
    """The watches of an instance. The mask has IN_ONESHOT and IN_EXCL_UNLINK only from Linux 5.19 on."""
    found = []
    for line in text.splitlines():
        if line.startswith(_INOTIFY):
            fields = _fields(line)
            found.append(Watch(int(fields["wd"], 16), int(fields["mask"], 16) & INOTIFY_MASK, _target(fields)))
    return tuple(found)


def fanotify(text: str) -> Group:
    """The group and its marks, holders left empty."""
    flags = event_flags = 0
    marks, unknown = [], []
    for line in text.splitlines():
        if not line.startswith(_FANOTIFY):
            continue
        fields = _fields(line)
        if "flags" in fields:
            flags, event_flags = int(fields["flags"], 16), int(fields["event-flags"], 16)
            continue
        kind = {"ino": "inode", "mnt_id": "mount", "sdev": "filesystem"}.get(next(iter(fields), ""))
        if kind is None:
            unknown.append(line)
            continue
        target = _NOWHERE
        if kind == "inode":
            target = _target(fields)
        elif kind == "filesystem":
            target = Target(int(fields["sdev"], 16), 0, 0, "")
        flags_of_mark, mask, ignored = (int(fields[name], 16) for name in ("mflags", "mask", "ignored_mask"))
        if (mask | ignored) & ~FANOTIFY_MASK or flags_of_mark & ~MARK_FLAGS:
            unknown.append(line)  # of a newer kernel: better not moved than moved by halves
            continue
        marks.append(Mark(kind, flags_of_mark, mask, ignored, target, int(fields.get("mnt_id", "0"), 16)))
    return Group((), flags, event_flags, tuple(marks), tuple(unknown))


def _time(text: str) -> int:
    seconds, nanoseconds = text.strip().strip("()").split(",")
    return int(seconds) * 10**9 + int(nanoseconds)


def timerfd(text: str) -> Timer:
    """The timer, holders left empty."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    flags = int(fields["settime flags"].strip(), 8)
    value, interval = _time(fields["it_value"]), _time(fields["it_interval"])
    return Timer((), int(fields["clockid"]), int(fields["ticks"]), flags, value, interval)
