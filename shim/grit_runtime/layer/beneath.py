"""Reach into a tree that somebody else has filled, without ever leaving it.

Every path is walked component by component from an open directory, and no component may be a symbolic link: so neither
a link nor `..` nor a mount can lead out, whatever happens in the tree at the same time.
"""

from __future__ import annotations

import ctypes
import os
import stat

# linux/openat2.h; the system call has the number 437 on every architecture (asm-generic/unistd.h)
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10
_OPENAT2 = 437

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unsafe(Exception):
    """A path that may not be used; the text says why."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2) (Linux 5.6): a descriptor for `path` from `directory`; OSError as the system call reports it."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = _How(flags, 0, resolve)
    fd: int = libc.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(directory), ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )  # fmt: skip
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def open_in_root(root: str, path: str) -> int:
    """The directory `path` as a process sees it whose root is `root`: links in it lead nowhere outside of `root`."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, IN_ROOT | NO_MAGICLINKS)
    finally:
        os.close(fd)


def split(path: str) -> tuple[str, ...]:
    """The components of a relative path from an archive. Raises Unsafe for an absolute one and for `..`."""
    if path.startswith("/"):
        raise Unsafe("an absolute path")
    if "\0" in path:
        raise Unsafe("a path with a NUL in it")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise Unsafe("a path with .. in it")
    return parts


class Tree:
    """A directory whose subdirectories are opened one below the other; the way to the last one stays open."""

    def __init__(self, root: int) -> None:
        """Takes over the descriptor `root`."""
        self._way: list[tuple[str, int]] = [("", root)]
        self._device = os.fstat(root).st_dev

    def close(self) -> None:
        while self._way:
            os.close(self._way.pop()[1])

    def directory(self, parts: tuple[str, ...], *, make: bool = False) -> int | None:
        """A descriptor, valid until the next call, of this directory; None if it isn't there (or not a directory).

        With `make` missing ones are made, owned by root with mode 0755, and something else in their place is Unsafe.
        """
        depth = 0
        while depth < len(parts) and depth + 1 < len(self._way) and self._way[depth + 1][0] == parts[depth]:
            depth += 1
        while len(self._way) > depth + 1:
            os.close(self._way.pop()[1])
        for part in parts[depth:]:
            here = self._way[-1][1]
            try:
                fd = os.open(part, DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    return None
                os.mkdir(part, 0o755, dir_fd=here)
                fd = os.open(part, DIRECTORY, dir_fd=here)
            except (NotADirectoryError, OSError) as error:
                if not isinstance(error, NotADirectoryError) and error.errno != 40:  # ELOOP
                    raise
                if make:
                    raise Unsafe(f"{part} on its way is not a directory") from None
                return None
            self._way.append((part, fd))
            if os.fstat(fd).st_dev != self._device:
                raise Unsafe(f"{part} on its way is another file system")
        return self._way[-1][1]

    def remove(self, parent: int, name: str, keep: frozenset[str] | set[str] = frozenset(), prefix: str = "") -> bool:
        """Removes `name` below the descriptor `parent`, with all in it but the paths in `keep`; `prefix` is the path
        of `parent` with its slash, needed for `keep` alone. Whether it is gone."""
        st = lstat(parent, name)
        if st is None:
            return True
        if prefix + name in keep and not stat.S_ISDIR(st.st_mode):
            return False
        if not stat.S_ISDIR(st.st_mode):
            os.unlink(name, dir_fd=parent)
            return True
        fd = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            if os.fstat(fd).st_dev != self._device:
                raise Unsafe(f"{name} is another file system")
            gone = [self.remove(fd, child, keep, f"{prefix}{name}/") for child in os.listdir(fd)]
        finally:
            os.close(fd)
        if not all(gone) or prefix + name in keep:
            return False
        os.rmdir(name, dir_fd=parent)
        return True


def lstat(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
