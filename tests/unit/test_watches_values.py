"""What the kernel says of watches and timers, taken apart, and the plans of calls. Pure values."""

from __future__ import annotations

import struct

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.watches import (
    Group,
    Holder,
    Instance,
    Mark,
    Record,
    Target,
    Timer,
    Watch,
    fanotify,
    fdinfo,
    finding,
    mounttable,
    permission_groups,
    require_resolved,
    timers,
)
from grit_runtime.watches.resolving import with_paths
from grit_runtime.watches.syscalls import TimerSetting

NOWHERE = Target(0, 0, 0, "")
SECOND = 10**9

INOTIFY = """\
pos:\t0
flags:\t02004000
mnt_id:\t17
ino:\t1060
inotify wd:1f ino:2b3c sdev:fe00001 mask:84000002 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:4b282c00
inotify wd:2 ino:1 sdev:32 mask:fff ignored_mask:0
"""
FANOTIFY = """\
pos:\t0
flags:\t02
mnt_id:\t17
ino:\t1060
fanotify flags:606 event-flags:8000
fanotify ino:c1 sdev:32 mflags:240 mask:2 ignored_mask:40000000 fhandle-bytes:c fhandle-type:1 f_handle:0dea5ed8
fanotify mnt_id:4f mflags:0 mask:20 ignored_mask:0
fanotify sdev:fe00001 mflags:0 mask:8 ignored_mask:0
fanotify mnt_ns:4026531841 mflags:0 mask:1000000 ignored_mask:0
fanotify ino:c2 sdev:32 mflags:0 mask:200000 ignored_mask:0
"""
TIMERFD = """\
pos:\t0
flags:\t02000002
mnt_id:\t17
ino:\t1060
clockid: 0
ticks: 3
settime flags: 03
it_value: (1, 500000000)
it_interval: (2, 7)
"""


def test_fdinfo() -> None:
    """Numbers are hexadecimal but for the timers'; a file system may give no handle; unknown marks are kept apart."""
    assert fdinfo.inotify(INOTIFY) == (
        Watch(0x1F, 0x84000002, Target(0xFE00001, 0x2B3C, 1, "4b282c00")),
        Watch(2, 0xFFF, Target(0x32, 1, 0, "")),
    )
    group = fdinfo.fanotify(FANOTIFY)
    assert (group.flags, group.event_flags) == (0x606, 0x8000)
    assert group.marks == (
        Mark("inode", 0x240, 0x2, 0x40000000, Target(0x32, 0xC1, 1, "0dea5ed8")),
        Mark("mount", 0, 0x20, 0, NOWHERE, 0x4F),
        Mark("filesystem", 0, 0x8, 0, Target(0xFE00001, 0, 0, "")),
    )
    assert [line.split()[1] for line in group.unknown] == ["mnt_ns:4026531841", "ino:c2"]
    assert fdinfo.timerfd(TIMERFD) == Timer((), 0, 3, 3, 1_500_000_000, 2_000_000_007)


def test_same_open_files_are_grouped() -> None:
    """By kcmp's order, in few comparisons; one that is gone stands alone."""
    files = {(pid, fd): (pid * fd) % 7 for pid in range(1, 41) for fd in range(1, 11)}
    asked = 0

    def order(one: tuple[int, int], other: tuple[int, int]) -> int:
        nonlocal asked
        asked += 1
        if (39, 3) in (one, other):
            raise ProcessLookupError(3, "gone")
        mine, theirs = files[one] * 5 % 7, files[other] * 5 % 7  # an order, but not the numbers' own
        return 0 if mine == theirs else 1 if mine < theirs else 2

    groups = finding.group(sorted(files), order)
    assert [one for one in groups if (39, 3) in one] == [[(39, 3)]]
    rest = [one for one in groups if (39, 3) not in one]
    assert sorted(len({files[place] for place in one}) for one in rest) == [1] * 7
    assert sum(map(len, groups)) == len(files)
    assert asked < 4 * len(files)


def test_mounts() -> None:
    """Octal escapes, optional fields, a mount outside of the root, and the one on top of two at the same place."""
    table = mounttable.parse(
        [
            b"21 1 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/a\n",
            b"22 21 0:51 / /a\\040b rw shared:7 master:1 - tmpfs none rw\n",
            b"23 21 254:17 /x /data rw - ext4 /dev/vda1 rw\n",
            b"24 23 0:52 / /data rw - fuse.sshfs host: rw\n",
            b"25 1 0:9 /.. unreachable rw - tmpfs none rw\n",
        ]
    )
    assert table[22] == mounttable.Mount(22, 51, "/a b", "tmpfs")
    assert table[23].dev == 254 << 20 | 17
    assert 25 not in table
    points = mounttable.by_point(table.values())
    below = {path: mounttable.below(points, path) for path in ("/a b/c", "/a bc", "/data/x", "/")}
    numbers = {path: mount.number for path, mount in below.items() if mount}
    assert numbers == {"/a b/c": 22, "/a bc": 21, "/data/x": 24, "/": 21}
    assert table[24].served and not table[23].served


def test_marks_get_their_paths() -> None:
    """Inode marks by their inode, mount marks by the mount's id, file system marks by a mount of the device; what has
    none is refused by name."""
    table = mounttable.parse([b"21 1 0:50 / / rw - overlay o rw\n", b"23 21 254:17 / /data rw - ext4 /dev/vda1 rw\n"])
    target = Target(50, 3, 1, "aa")
    marks = (
        Mark("inode", 0, 1, 0, target),
        Mark("mount", 0, 1, 0, NOWHERE, 23),
        Mark("filesystem", 0, 1, 0, Target(254 << 20 | 17, 0, 0, "")),
    )
    record = with_paths(Record(fanotify=(Group((Holder(1, 3),), 0, 0, marks),)), {target: ("/a", 0)}, table)
    assert [mark.path for mark in record.fanotify[0].marks] == ["/a", "/data", "/data"]
    require_resolved(record)
    del table[23]
    with pytest.raises(Refusal, match="fanotify-filesystem-mark"):
        require_resolved(with_paths(record, {target: ("/a", 0)}, table))
    group = record.fanotify[0]
    with pytest.raises(Refusal, match="fanotify-mark-unknown"):
        require_resolved(record._replace(fanotify=(group._replace(unknown=("fanotify mnt_ns:1",)),)))
    watch = Watch(1, 2, target)
    with pytest.raises(Refusal, match=r"watch-not-found.*process 7, descriptor 4.*inode 3 of device 0:50"):
        require_resolved(Record(inotify=(Instance((Holder(7, 4),), (watch,)),)))


def test_permission_groups() -> None:
    kinds = [Group((Holder(1, fd),), flags, 0, ()) for fd, flags in enumerate((0x0, 0x4, 0x8, 0x602))]
    assert [one.holders[0].fd for one in permission_groups(Record(fanotify=tuple(kinds)))] == [1, 2]


def test_mark_calls() -> None:
    """Mask and ignored mask are two calls; EVICTABLE goes with both, SURV_MODIFY with the second, IGNORE replaces
    IGNORED_MASK (linux/fanotify.h)."""
    assert fanotify.calls(Mark("inode", 0, 0x2, 0, NOWHERE)) == [(0x1, 0x2)]
    assert fanotify.calls(Mark("mount", 0x40, 0x20, 0x1, NOWHERE)) == [(0x11, 0x20), (0x11 | 0x20 | 0x40, 0x1)]
    assert fanotify.calls(Mark("filesystem", 0x240, 0, 0x1, NOWHERE)) == [(0x101 | 0x200 | 0x20 | 0x40, 0x1)]
    both = fanotify.calls(Mark("inode", 0x640, 0x2, 0x1, NOWHERE))
    assert both == [(0x1 | 0x200, 0x2), (0x1 | 0x200 | 0x400 | 0x40, 0x1)]


def test_event_descriptors() -> None:
    """Each event's descriptor is closed, a process's too; only permission events are answered; FAN_NOFD is none."""

    def event(mask: int, fd: int, info: bytes = b"") -> bytes:
        return struct.pack("=IBBHQii", 24 + len(info), 3, 0, 24, mask, fd, 1) + info

    fid = struct.pack("=BBH", 1, 0, 20) + b"\xff" * 16
    pidfd = struct.pack("=BBHi", 4, 0, 8, 9)
    no_pidfd = struct.pack("=BBHi", 4, 0, 8, -1)
    block = event(0x2, 5) + event(0x10000, 6) + event(0x100, -1, fid + pidfd) + event(0x4000, -1, no_pidfd)
    assert fanotify.descriptors(block) == ([5, 6, 9], [6], 4)


@pytest.mark.parametrize(
    ("timer", "expected"),
    [
        # what remained at the dump, relative and absolute (which CRIU shifts as well)
        (Timer((), 1, 1, 0, SECOND, 5 * SECOND), (0, TimerSetting(SECOND, 5 * SECOND))),
        (Timer((), 1, 1, 1, SECOND, 5 * SECOND), (1, TimerSetting(101 * SECOND, 5 * SECOND))),
        # nothing known of its phase: a whole interval
        (Timer((), 1, 1, 0, 0, 5 * SECOND), (0, TimerSetting(5 * SECOND, 5 * SECOND))),
        # on the wall clock it keeps to its raster: due at 4 s, every 5 s, now 1000 s: next at 1004 s
        (Timer((), 0, 1, 1, SECOND, 5 * SECOND, 4 * SECOND), (1, TimerSetting(104 * SECOND, 5 * SECOND))),
        # and one not due yet comes when it was due
        (Timer((), 0, 1, 1, SECOND, 5 * SECOND, 1002 * SECOND), (1, TimerSetting(102 * SECOND, 5 * SECOND))),
    ],
)
def test_timer_setting(timer: Timer, expected: tuple[int, TimerSetting]) -> None:
    assert timers.setting(timer, 100 * SECOND, 1000 * SECOND) == expected


def test_what_is_left_alone() -> None:
    """A disarmed periodic timer and a single one aren't set again; a container with only these needs nothing."""
    off, once = Timer((), 1, 0, 0, 0, SECOND), Timer((), 1, 1, 0, 0, 0)
    assert not off.ticking and not once.ticking
    assert finding.empty(Record((Instance((), ()),), timers=(off, once)))
    assert not finding.empty(Record(timers=(off._replace(ticks=1),)))
    assert not finding.empty(Record((Instance((), (Watch(1, 2, NOWHERE),)),)))
