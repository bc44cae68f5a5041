"""Bytes from one file to another without passing through Python, where the kernel can."""

from __future__ import annotations

import errno
import os

SMALL = 128 << 10  # at most so many bytes go through memory: a copy call of its own costs more than they do
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def copy(source: int, offset: int, size: int, target: int) -> int:
    """`size` bytes of `source` from `offset` to the current position of `target`; returns how many there were.

    copy_file_range(2) first, sendfile(2) where two file systems cannot do it, then read and write. Any other error
    (no space, a disk error) is the caller's.
    """
    done = 0
    for way in (_range, os.sendfile, _plain):
        while done < size:
            try:
                n = way(target, source, offset + done, min(size - done, 1 << 30))
            except OSError as error:
                if error.errno in _CANNOT and way is not _plain:
                    break
                raise
            if n == 0:
                break
            done += n
    return done


def write_all(target: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _range(target: int, source: int, offset: int, size: int) -> int:
    return os.copy_file_range(source, target, size, offset)


def _plain(target: int, source: int, offset: int, size: int) -> int:
    data = os.pread(source, min(size, 1 << 20), offset)
    write_all(target, data)
    return len(data)


def segments(file: int, size: int) -> list[tuple[int, int]] | None:
    """(offset, length) of each run of data in a file with holes; None for one without (lseek(2), SEEK_DATA)."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            return None
        at = min(os.lseek(file, start, os.SEEK_HOLE), size)
        if start < size:
            found.append((start, at - start))
    return None if found == [(0, size)] else found
