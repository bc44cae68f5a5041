"""The system calls behind watches and timers, by ctypes: thin, named, and an OSError where the kernel says no.

Numbers and constants are the kernel's UAPI; each block names its header. Calls that libc has no wrapper for (or only a
recent one) go through syscall(2) with a number from the table of the architecture; from 424 on all architectures share
their numbers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from typing import NamedTuple

# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64)
PIDFD_OPEN, PIDFD_GETFD = 434, 438
_KCMP = {"x86_64": 312, "aarch64": 272}

KCMP_FILE = 0  # linux/kcmp.h
AT_FDCWD = -100  # linux/fcntl.h, and the next four
AT_HANDLE_FID = 0x200  # since Linux 6.5: a handle to compare, which need not be one that can be opened
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
MAX_HANDLE_SZ = 128


# linux/inotify.h
IN_ALL_EVENTS = 0xFFF
IN_IGNORED = 0x8000
IN_EXCL_UNLINK = 0x04000000
IN_MASK_CREATE = 0x10000000  # since Linux 4.18: EEXIST instead of changing a watch that is there
IN_ONESHOT = 0x80000000
INOTIFY_MASK = IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT  # what fdinfo shows, and what is put back
INOTIFY_IOC_SETNEXTWD = 0x40044900  # _IOW('I', 0, __s32), with CONFIG_CHECKPOINT_RESTORE

# linux/fanotify.h
FAN_MARK_ADD, FAN_MARK_IGNORED_MASK, FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_FLUSH = 0x01, 0x20, 0x40, 0x80
FAN_MARK_INODE, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0x00, 0x10, 0x100
FAN_MARK_EVICTABLE, FAN_MARK_IGNORE = 0x200, 0x400
FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT = 0x04, 0x08
FAN_PERMISSION_EVENTS = 0x10000 | 0x20000 | 0x40000 | 0x100000  # OPEN, ACCESS, OPEN_EXEC, PRE_ACCESS
# all events that a mark may have, permission events, FAN_EVENT_ON_CHILD, FAN_RENAME and FAN_ONDIR
FANOTIFY_MASK = 0x1FFF | 0x8000 | FAN_PERMISSION_EVENTS | 0x08000000 | 0x10000000 | 0x40000000
MARK_FLAGS = FAN_MARK_IGNORED_SURV_MODIFY | FAN_MARK_EVICTABLE | FAN_MARK_IGNORE
FAN_ALLOW = 0x01
FAN_EVENT_INFO_TYPE_PIDFD = 4

# linux/timerfd.h
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
TFD_IOC_SET_TICKS = 0x40085400  # _IOW('T', 0, __u64), with CONFIG_CHECKPOINT_RESTORE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_handle = ctypes.create_string_buffer(8 + MAX_HANDLE_SZ)
_mount_id = ctypes.c_int()
_fid_flag = AT_HANDLE_FID


class Handle(NamedTuple):
    """A file handle (name_to_handle_at(2)): `kind` is its type, `data` its bytes in hex, `mount` the mount's id."""

    kind: int
    data: str
    mount: int


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _call(what: str, number: int, *arguments: object) -> int:
    got: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if got < 0:
        raise _fail(what)
    return got


def pidfd_getfd(pid: int, fd: int) -> int:
    """A descriptor of ours for the open file behind `fd` of process `pid`; it need not be stopped."""
    pidfd = pidfd_open(pid)
    try:
        return _call("pidfd_getfd", PIDFD_GETFD, ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))
    finally:
        os.close(pidfd)


def pidfd_open(pid: int) -> int:
    return _call("pidfd_open", PIDFD_OPEN, ctypes.c_int(pid), ctypes.c_uint(0))


def kcmp_file(pid1: int, fd1: int, pid2: int, fd2: int) -> int:
    """0: the same open file; 1: the first is less, 2: greater, in an order that holds until the next boot."""
    number = _KCMP.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"kcmp: not known for {os.uname().machine}")
    long = ctypes.c_ulong
    return _call("kcmp", number, ctypes.c_int(pid1), ctypes.c_int(pid2), ctypes.c_int(KCMP_FILE), long(fd1), long(fd2))


def file_handle(dir_fd: int, path: str, follow: bool = False) -> Handle:
    """The handle of `path` as fdinfo shows it for a watch.

    Asks for AT_HANDLE_FID, and on a kernel before 6.5 without it; there EOPNOTSUPP is the answer for file systems
    such as overlay and proc whose files can't be opened by handle.
    """
    global _fid_flag
    flags = (AT_SYMLINK_FOLLOW if follow else 0) | (0 if path else AT_EMPTY_PATH)
    name = os.fsencode(path)
    while True:
        struct.pack_into("=I", _handle, 0, MAX_HANDLE_SZ)
        asked = _fid_flag
        if not _libc.name_to_handle_at(dir_fd, name, _handle, ctypes.byref(_mount_id), flags | asked):
            size, kind = struct.unpack_from("=Ii", _handle)
            return Handle(kind & 0xFFFFFFFF, _handle.raw[8 : 8 + size].hex(), _mount_id.value)
        if not (asked and ctypes.get_errno() == errno.EINVAL):
            raise _fail("name_to_handle_at")
        _fid_flag = 0


def inotify_rm_watch(fd: int, wd: int) -> None:
    if _libc.inotify_rm_watch(fd, wd):
        raise _fail("inotify_rm_watch")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    wd: int = _libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask))
    if wd < 0:
        raise _fail("inotify_add_watch")
    return wd


def inotify_set_next(fd: int, wd: int) -> None:
    """The next watch added to the instance gets the number `wd` or the next free one above it."""
    fcntl.ioctl(fd, INOTIFY_IOC_SETNEXTWD, wd)


def fanotify_mark(fd: int, flags: int, mask: int, path: str | None) -> None:
    name = None if path is None else os.fsencode(path)
    if _libc.fanotify_mark(fd, ctypes.c_uint(flags), ctypes.c_uint64(mask), AT_FDCWD, name):
        raise _fail("fanotify_mark")


def readable(fd: int) -> int:
    """FIONREAD: bytes that wait (for fanotify a lower bound, 24 an event)."""
    answer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, answer)
    return int.from_bytes(answer, "little" if struct.pack("=H", 1)[0] else "big")


class TimerSetting(NamedTuple):
    """struct itimerspec, in nanoseconds: time until the next expiry (0: not armed), and the interval (0: once)."""

    value: int
    interval: int


def timerfd_gettime(fd: int) -> TimerSetting:
    """Also does what a read does to a periodic timer that expired: counts the ticks missed and arms it in phase."""
    spec = ctypes.create_string_buffer(struct.calcsize("@4l"))
    if _libc.timerfd_gettime(fd, spec):
        raise _fail("timerfd_gettime")
    every_s, every_ns, value_s, value_ns = struct.unpack("@4l", spec.raw)
    return TimerSetting(value_s * 10**9 + value_ns, every_s * 10**9 + every_ns)


def timerfd_settime(fd: int, flags: int, setting: TimerSetting) -> None:
    """Sets the timer; the ticks not yet read become 0."""
    numbers = (*divmod(setting.interval, 10**9), *divmod(setting.value, 10**9))
    if _libc.timerfd_settime(fd, flags, struct.pack("@4l", *numbers), None):
        raise _fail("timerfd_settime")


def timerfd_set_ticks(fd: int, ticks: int) -> None:
    """The next read returns `ticks`, which must not be 0."""
    fcntl.ioctl(fd, TFD_IOC_SET_TICKS, struct.pack("=Q", ticks))
