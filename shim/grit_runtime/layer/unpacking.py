"""Unpack the archive of a whole checkpoint, as CRI's CheckpointContainer writes it, into a folder of root's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator

from grit_runtime.checks import refuse
from grit_runtime.layer.applying import room
from grit_runtime.layer.tarin import Corrupt, Member, Reader, TooLarge
from grit_runtime.layer.tree import Tree, Unsafe, split

UNPACKED = "/var/lib/grit-runtime/unpacked"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def unpacked(archive: str) -> Iterator[str]:
    """A new folder below UNPACKED with the archive's files, removed afterwards: folders and regular files only, for
    root alone. A lock on it tells it from what a process left behind that was killed; that is removed first.

    Refuses checkpoint-archive-unreadable.
    """
    folder, lock = _new(UNPACKED)
    try:
        unpack(archive, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def unpack(archive: str, folder: str) -> None:
    """The archive's members into the empty `folder`."""
    at = archive
    try:
        fd = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Corrupt("it is not a regular file")
            tree = Tree(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            try:
                reader = Reader(fd, room(folder))
                for member in reader:
                    at = member.name
                    _one(tree, member, reader)
            finally:
                tree.close()
        finally:
            os.close(fd)
    except TooLarge as error:
        raise refuse("checkpoint-archive-unreadable", path=archive, error="there is no room for it") from error
    except (Corrupt, Unsafe, OSError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise refuse("checkpoint-archive-unreadable", path=archive, error=f"{at}: {text}") from error


def _one(tree: Tree, member: Member, reader: Reader) -> None:
    parts = split(member.name)
    if member.kind == "5":
        tree.directory(parts, make=True)
    elif member.kind == "0" and parts:
        parent = tree.directory(parts[:-1], make=True)
        file = os.open(parts[-1], _NEW, 0o600, dir_fd=parent)
        try:
            reader.copy(file)
        finally:
            os.close(file)
    else:
        raise Unsafe("neither a folder nor a regular file")


def _new(top: str) -> tuple[str, int]:
    """A folder below `top` and the descriptor that holds its lock; those that nobody holds are removed."""
    import fcntl

    os.makedirs(top, mode=0o700, exist_ok=True)
    guard = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)  # until the new folder has its own lock
        for name in os.listdir(top):
            try:
                lock = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=guard)
            except FileNotFoundError:
                continue  # its owner has just removed it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(os.path.join(top, name), ignore_errors=True)
            except BlockingIOError:
                pass  # another restore works with it
            finally:
                os.close(lock)
        folder = tempfile.mkdtemp(prefix="", dir=top)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock
    finally:
        os.close(guard)
