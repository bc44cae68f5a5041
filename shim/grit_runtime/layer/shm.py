"""Put back what a container had in /dev/shm, into a /dev/shm that belongs to its pod.

Other containers of the pod may be using it already, so nothing there is ever overwritten. A file that is there is left
as it is when a sibling brought the very same one from the old pod (GRIT.origin, kept as an attribute that only root
can set), or when it has the same content; anything else of that name is a conflict.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from typing import NamedTuple

from grit_runtime.checks import refuse
from grit_runtime.layer.applying import named, room, set_xattrs
from grit_runtime.layer.tarin import Corrupt, Member, Reader
from grit_runtime.layer.tree import Tree, Unsafe, lstat, split

_ORIGIN = "trusted.grit.origin"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Placed(NamedTuple):
    """`made`: the paths that are new, in the order they were made, for `remove_shm`; JSON can hold it."""

    bytes: int
    made: tuple[str, ...]
    shared: int = 0


def apply_shm(archive: str, directory: str) -> Placed:
    """What save_shm wrote, into `directory`, the source of the live spec's /dev/shm. All is looked at before anything
    is made, and what was made is removed again if it fails.

    Refuses shm-conflict, shm-too-small, layer-corrupt, layer-hostile, layer-apply-failed.
    """
    at = [""]
    made: list[str] = []
    try:
        fd = os.open(archive, _READ)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Corrupt("it is not a regular file")
            there, need = _compare(fd, directory, at)
            have = room(directory)
            if need > have:
                raise refuse("shm-too-small", need=need, room=have)
            done = _make(fd, directory, there, made, at)
        finally:
            os.close(fd)
    except BaseException as error:
        remove_shm(directory, made)
        raise named(error, archive, directory, at[0]) from error
    return Placed(done, tuple(made), len(there))


def empty(directory: str) -> None:
    """Take away all that is in `directory`, which belongs to the container alone. Nothing is followed out of it."""
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def remove_shm(directory: str, made: Iterable[str]) -> None:
    """Undoes apply_shm: removes these paths again, as far as they are there; directories only if nothing is in them."""
    tree = Tree(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        for path in reversed(list(made)):
            *above, name = split(path)
            parent = tree.directory(tuple(above))
            st = lstat(parent, name) if parent is not None else None
            if st is None:
                continue
            try:
                if stat.S_ISDIR(st.st_mode):
                    os.rmdir(name, dir_fd=parent)
                else:
                    os.unlink(name, dir_fd=parent)
            except OSError:
                pass  # in use by a sibling by now: theirs
    finally:
        tree.close()


def _compare(fd: int, directory: str, at: list[str]) -> tuple[set[str], int]:
    """The paths that are there already, and the bytes that the others take."""
    there: set[str] = set()
    need = 0
    page = os.sysconf("SC_PAGE_SIZE")
    space = os.statvfs(directory)
    tree = Tree(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        reader = Reader(fd, max(1 << 30, 2 * space.f_blocks * space.f_frsize))
        for member in reader:
            at[0] = member.name
            *above, name = split(member.name) or ("",)
            if member.kind not in "01256" or not name:
                raise Unsafe("a member that /dev/shm never holds")
            parent = tree.directory(tuple(above))
            st = lstat(parent, name) if parent is not None else None
            if parent is not None and st is not None:
                if not _same(parent, name, st, member, reader):
                    raise refuse("shm-conflict", member=member.name)
                there.add("/".join((*above, name)))
            else:
                need += -(-member.stored // page) * page
    finally:
        tree.close()
    return there, need


def _same(parent: int, name: str, st: os.stat_result, member: Member, reader: Reader) -> bool:
    kind = stat.S_IFMT(st.st_mode)
    if member.kind == "5":
        return kind == stat.S_IFDIR
    if member.kind == "2":
        return kind == stat.S_IFLNK and os.readlink(name, dir_fd=parent) == member.link
    if member.kind == "6":
        return kind == stat.S_IFIFO
    if kind != stat.S_IFREG:
        return False
    if member.kind == "1":
        return True  # the name that it links to is compared by itself
    file = os.open(name, _READ, dir_fd=parent)
    try:
        try:
            if member.origin and os.getxattr(file, _ORIGIN) == os.fsencode(member.origin):
                return True
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
        return reader.matches(file)
    finally:
        os.close(file)


def _make(fd: int, directory: str, there: set[str], made: list[str], at: list[str]) -> int:
    done = 0
    tree = Tree(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        reader = Reader(fd)
        for member in reader:
            at[0] = member.name
            parts = split(member.name)
            path = "/".join(parts)
            if path in there:
                continue
            parent = tree.directory(parts[:-1])
            if parent is None:
                raise Unsafe("its directory is not in the archive")
            try:
                _one(parent, parts[-1], member, reader, directory)
            except FileExistsError:
                raise refuse("shm-conflict", member=member.name) from None
            except BaseException:
                if lstat(parent, parts[-1]) is not None:
                    made.append(path)
                raise
            made.append(path)
            done += member.stored
    finally:
        tree.close()
    return done


def _one(parent: int, name: str, member: Member, reader: Reader, directory: str) -> None:
    """Makes one member that isn't there; FileExistsError if it is by now."""
    if member.kind == "1":
        *above, first = split(member.link) or ("",)
        other = Tree(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            source = other.directory(tuple(above))
            st = lstat(source, first) if source is not None and first else None
            if st is None or not stat.S_ISREG(st.st_mode):
                raise Unsafe(f"a hard link to {member.link}, which is no file here")
            os.link(first, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            other.close()
        return
    if member.kind == "0":
        file = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            reader.copy(file)
            os.fchown(file, member.uid, member.gid)
            os.fchmod(file, member.mode)
            set_xattrs(file, member)
            if member.origin:
                try:
                    os.setxattr(file, _ORIGIN, os.fsencode(member.origin))
                except OSError:
                    pass  # then a sibling compares the content
            os.utime(file, ns=(member.mtime, member.mtime))
        finally:
            os.close(file)
        return
    if member.kind == "2":
        os.symlink(member.link, name, dir_fd=parent)
    elif member.kind == "6":
        os.mkfifo(name, 0o600, dir_fd=parent)
    else:
        os.mkdir(name, 0o700, dir_fd=parent)
    if member.kind != "2":
        os.chmod(name, member.mode, dir_fd=parent)
    os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    if member.kind == "5":  # chown takes setgid away
        os.chmod(name, member.mode, dir_fd=parent)
