"""Apply an OCI layer to the root filesystem of a container that is about to be restored.

The archive is untrusted. What it can do is bounded to the root filesystem: every step goes through `Tree`.
Kept as they are: owner, permission bits with setuid and setgid, file capabilities. They are the container's own, its
image may hold such files too, and nobody but its processes reaches that root filesystem. Left out: device nodes, which
the live spec provides, and attributes other than user.*, ACLs and capabilities.

There is no undo: the root filesystem belongs to the container that is being created, and is deleted with it when this
fails.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from grit_runtime.checks import refuse
from grit_runtime.layer.saving import OPAQUE, WHITEOUT, carried
from grit_runtime.layer.tarin import Corrupt, Member, Reader, TooLarge
from grit_runtime.layer.tree import Tree, Unsafe, lstat, split

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKABLE = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO)


class Applied(NamedTuple):
    """`bytes` of file data written; `left_out`: device nodes; `already`: it was found in place, nothing was done."""

    bytes: int
    entries: int
    left_out: int = 0
    already: bool = False


def apply_once(archive: str, rootfs: str) -> Applied:
    """As `apply`, unless all of the layer is in `rootfs` already: GRIT's containerd shim, and containerd's own restore,
    apply it before they call the runtime. By what is there, not by a mark: a new rootfs then needs none."""
    return Applied(0, 0, 0, True) if applied(archive, rootfs) else apply(archive, rootfs)


def apply(archive: str, rootfs: str) -> Applied:
    """The layer in `archive` (tar, plain or gzip whatever its name) onto the mounted directory `rootfs`. Doing it twice
    comes to the same as once.

    Refuses layer-corrupt, layer-hostile, layer-too-large (more than is free), layer-apply-failed.
    """
    at = [""]
    try:
        fd = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Corrupt("it is not a regular file")
            return _Apply(fd, rootfs, at).run()
        finally:
            os.close(fd)
    except BaseException as error:
        raise named(error, archive, rootfs, at[0]) from error


def applied(archive: str, rootfs: str) -> bool:
    """Whether all that the layer says is so in `rootfs`: kinds, sizes, times, owners, modes, absences. False also for
    an archive that cannot be read: apply then says why."""
    try:
        fd = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _in_place(fd, rootfs)
        finally:
            os.close(fd)
    except (OSError, Corrupt, TooLarge, Unsafe):
        return False


def named(error: BaseException, archive: str, target: str, member: str) -> BaseException:
    """The refusal that stands for an error of the reader or the tree; other exceptions as they are."""
    if isinstance(error, Corrupt):
        return refuse("layer-corrupt", path=archive, detail=error)
    if isinstance(error, Unsafe):
        return refuse("layer-hostile", path=archive, member=member, detail=error)
    if isinstance(error, TooLarge):
        return refuse("layer-too-large", path=archive, target=target, room=room(target))
    if isinstance(error, (OSError, OverflowError, RecursionError)):
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        return refuse("layer-apply-failed", path=archive, member=member, error=text)
    return error


def room(directory: str) -> int:
    """Free bytes of the file system that holds `directory`."""
    free = os.statvfs(directory)
    return free.f_bavail * free.f_frsize


class _Apply:
    def __init__(self, fd: int, rootfs: str, at: list[str]) -> None:
        self.reader = Reader(fd, room(rootfs))
        self.root = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.at = at
        self.made: set[str] = set()
        self.times: dict[tuple[str, ...], int] = {}
        self.bytes = self.entries = self.left_out = 0

    def run(self) -> Applied:
        tree = Tree(self.root)
        try:
            for member in self.reader:
                self.at[0] = member.name
                self.entries += 1
                self._member(tree, member)
            for parts, mtime in self.times.items():
                fd = tree.directory(parts)
                if fd is not None:
                    os.utime(fd, ns=(mtime, mtime))
        finally:
            tree.close()
        return Applied(self.bytes, self.entries, self.left_out)

    def _member(self, tree: Tree, member: Member) -> None:
        parts = split(member.name)
        if not parts:
            if member.kind != "5":
                raise Unsafe("the root is not a directory in it")
            self._directory(tree, parts, member)
            return
        *above, name = parts
        if name.startswith(WHITEOUT):
            self._whiteout(tree, tuple(above), name)
            return
        if member.kind in "34":
            self.left_out += 1
            return
        parent = tree.directory(tuple(above), make=True)
        assert parent is not None
        self.made.add("/".join(parts))
        if member.kind == "5":
            self._directory(tree, parts, member, parent)
        elif member.kind == "1":
            self._hard_link(tree, parent, name, member)
        else:
            self._leaf(tree, parent, name, member)

    def _directory(self, tree: Tree, parts: tuple[str, ...], member: Member, parent: int | None = None) -> None:
        if parent is not None:
            st = lstat(parent, parts[-1])
            if st is None or not stat.S_ISDIR(st.st_mode):
                tree.remove(parent, parts[-1])
                os.mkdir(parts[-1], 0o700, dir_fd=parent)
        fd = tree.directory(parts)
        assert fd is not None
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)
        set_xattrs(fd, member)
        self.times[parts] = member.mtime

    def _leaf(self, tree: Tree, parent: int, name: str, member: Member) -> None:
        if member.kind == "0":
            self.bytes += member.stored
            write_file(tree, parent, name, self.reader, member)
            return
        tree.remove(parent, name)
        if member.kind == "2":
            if not member.link:
                raise Corrupt("a symbolic link without a target")
            os.symlink(member.link, name, dir_fd=parent)
        elif member.kind == "6":
            os.mkfifo(name, 0o600, dir_fd=parent)
            os.chmod(name, member.mode, dir_fd=parent)
        else:
            raise Corrupt(f"a member of unknown type {member.kind!r}")
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        set_xattrs(f"/proc/self/fd/{parent}/{name}", member)
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, tree: Tree, parent: int, name: str, member: Member) -> None:
        *above, first = split(member.link) or ("",)
        other = Tree(os.dup(self.root))
        try:
            source = other.directory(tuple(above))
            st = lstat(source, first) if source is not None and first else None
            if source is None or st is None:
                raise Unsafe(f"a hard link to {member.link}, which is not there")
            if stat.S_IFMT(st.st_mode) not in _LINKABLE:
                raise Unsafe(f"a hard link to {member.link}, which is no file")
            present = lstat(parent, name)
            if present is not None and (present.st_dev, present.st_ino) == (st.st_dev, st.st_ino):
                return
            tree.remove(parent, name)
            os.link(first, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            other.close()

    def _whiteout(self, tree: Tree, above: tuple[str, ...], name: str) -> None:
        parent = tree.directory(above)
        if parent is None:
            return
        prefix = "".join(part + "/" for part in above)
        if name == OPAQUE:
            for child in os.listdir(parent):
                tree.remove(parent, child, self.made, prefix)
        elif not name.startswith(OPAQUE[:8]):  # the rest is aufs's own bookkeeping
            hidden = name[len(WHITEOUT) :]
            if hidden in ("", ".", ".."):
                raise Unsafe("a whiteout of no name")
            tree.remove(parent, hidden, self.made, prefix)


def write_file(tree: Tree, parent: int, name: str, reader: Reader, member: Member) -> None:
    """A regular file with all that the member says of it, in place of whatever has the name now."""
    try:
        file = os.open(name, _NEW, 0o600, dir_fd=parent)
    except FileExistsError:
        tree.remove(parent, name)
        file = os.open(name, _NEW, 0o600, dir_fd=parent)
    try:
        reader.copy(file)
        os.fchown(file, member.uid, member.gid)
        os.fchmod(file, member.mode)
        set_xattrs(file, member)  # after chown, which would drop a capability
        os.utime(file, ns=(member.mtime, member.mtime))
    finally:
        os.close(file)


def set_xattrs(target: int | str, member: Member) -> None:
    for key, value in member.xattrs.items():
        if carried(key):
            try:
                os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:  # this file system keeps none: as if it were mounted so
                    raise


def _in_place(fd: int, rootfs: str) -> bool:
    names: dict[str, set[str]] = {}
    opaque: list[tuple[str, ...]] = []
    tree = Tree(os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        space = os.statvfs(rootfs)
        for member in Reader(fd, space.f_blocks * space.f_frsize):
            parts = split(member.name)
            if not parts or member.kind in "34":
                continue
            *above, name = parts
            if name.startswith(WHITEOUT) and member.stored:
                raise Corrupt("a whiteout with data")
            parent = tree.directory(tuple(above))
            if name == OPAQUE:
                opaque.append(tuple(above))
            elif name.startswith(WHITEOUT):
                if parent is not None and lstat(parent, name[len(WHITEOUT) :] or ".") is not None:
                    return False
            elif parent is None or not _same(lstat(parent, name), member):
                return False
            else:
                names.setdefault("/".join(above), set()).add(name)
        return all(_only(tree.directory(parts), names.get("/".join(parts), ())) for parts in opaque)
    finally:
        tree.close()


def _only(directory: int | None, names: Iterable[str]) -> bool:
    return directory is not None and set(os.listdir(directory)) <= set(names)


def _same(st: os.stat_result | None, member: Member) -> bool:
    if st is None or (member.kind != "1" and (st.st_uid, st.st_gid) != (member.uid, member.gid)):
        return False
    mode = stat.S_IMODE(st.st_mode)
    if member.kind == "0":
        same = st.st_mtime_ns == member.mtime and st.st_size == member.size and mode == member.mode
        return stat.S_ISREG(st.st_mode) and same
    if member.kind == "5":
        return stat.S_ISDIR(st.st_mode) and mode == member.mode
    kind = {"1": _LINKABLE, "2": (stat.S_IFLNK,), "6": (stat.S_IFIFO,)}.get(member.kind, ())
    return stat.S_IFMT(st.st_mode) in kind
