"""Reach into a tree that somebody else has filled, without ever leaving it.

Every path is walked component by component from an open directory, and no component may be a symbolic link: so neither
a link nor `..` nor a mount can lead out, whatever happens in the tree at the same time.
"""

from __future__ import annotations

import errno
import os
import stat

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unsafe(Exception):
    """A path that may not be used; the text says why."""


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
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):  # a symbolic link is one or the other
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
