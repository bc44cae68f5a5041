"""Opening a path that somebody else wrote, as a process with that root would: openat2(2) with RESOLVE_IN_ROOT."""

from __future__ import annotations

import ctypes
import os
import struct

SYS_openat2 = 437  # the same on all architectures: asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl
# linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10

_libc = ctypes.CDLL(None, use_errno=True)


def open_in_root(root_fd: int, path: str, flags: int, resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) -> int:
    """A descriptor of `path` below the folder `root_fd`, whatever symlinks it goes through; OSError as open(2)."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    fd: int = _libc.syscall(SYS_openat2, root_fd, ctypes.c_char_p(os.fsencode(path)), how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd
