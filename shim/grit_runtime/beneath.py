"""Opening a path that somebody else wrote, as a process with that root would: openat2(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

SYS_openat2 = 437  # the same on all architectures: asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl
# linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def open_in_root(root_fd: int, path: str, flags: int, resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) -> int:
    """A descriptor of `path` below the folder `root_fd`, whatever symlinks it goes through; OSError as open(2)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)  # struct open_how: flags, mode, resolve
    name = ctypes.c_char_p(os.fsencode(path))
    for _ in range(64):
        fd: int = _libc.syscall(ctypes.c_long(SYS_openat2), ctypes.c_int(root_fd), name, how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename or a mount somewhere at the same time
            raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EAGAIN, "it keeps changing", path)
