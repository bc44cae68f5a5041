"""Write a container's rw layer as an OCI layer, and its /dev/shm as a plain tar, while the tasks are stopped.

The layer is read from the overlay's upper directory, where it takes no searching. Two things lie elsewhere: the data of
a file of which only the metadata was copied up (metacopy), and what a renamed directory still has in the lower layers
(redirect). Both are read from the merged mount.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from grit_runtime import beneath
from grit_runtime.checks import refuse
from grit_runtime.layer import aliases
from grit_runtime.layer.copying import segments
from grit_runtime.layer.mounted import Overlay, place
from grit_runtime.layer.newfile import Saved, new_archive
from grit_runtime.layer.tarout import NOTHING, Attributes, Changed, Writer, charset, sparse_map
from grit_runtime.layer.tree import lstat

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STRICT = beneath.RESOLVE_BENEATH | beneath.RESOLVE_NO_SYMLINKS | beneath.RESOLVE_NO_XDEV
_KINDS = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFDIR: b"5", stat.S_IFIFO: b"6"}


def save(overlay: Overlay, merged_root: str, out: str, *, skip: Iterable[str] = ()) -> Saved:
    """The rw layer of `overlay` into the new file `out` (mode 0600, there at once and whole, replacing an old one).

    `merged_root` shows the overlay as the container sees it, `/proc/PID/root`; where our own mount namespace has it
    too, as `<bundle>/rootfs`, that is read instead, since there nothing is mounted over parts of it. `skip`: paths
    below the root, without a leading slash, that are left out with all below them.
    Refuses layer-upper-unknown, layer-unreadable, layer-unwritable.
    """
    overlay, seen = place(overlay)

    def walk(writer: Writer) -> tuple[int, int]:
        walking = _Walk(writer, overlay.xattr, seen or merged_root, skip)
        walking.tree(overlay.upper)
        if overlay.indexed and aliases.exist(overlay.work):
            walking.other_names()
        return walking.entries, walking.left_out

    return new_archive(out, overlay.upper, walk)


def save_shm(root: str, out: str) -> Saved | None:
    """/dev/shm below `root` (`/proc/PID/root`) into the new file `out`; None, and no file, when it holds nothing.

    Each file carries the pax record GRIT.origin, which says what it was on this node: two containers of a pod that
    share /dev/shm bring the same files, and a restore can see that they are the same. The other container is not
    stopped: what it removes or shortens meanwhile is no error.
    """
    try:
        inside = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            top = beneath.open_in_root(inside, "dev/shm", os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(inside)
    except OSError as error:
        raise refuse("layer-unreadable", path="/dev/shm", error=error.strerror) from error
    try:
        if not os.listdir(top):
            return None
        origin = f"{_boot_id()}:{os.fstat(top).st_dev:x}"
        return new_archive(out, "/dev/shm", lambda writer: _Walk(writer, "trusted.overlay.", "", (), origin).tree(top))
    finally:
        os.close(top)


class _Walk:
    """One walk through a tree; `entries` and `left_out` are its result."""

    def __init__(
        self, writer: Writer, prefix: str, merged_root: str, skip: Iterable[str], origin: str | None = None
    ) -> None:
        self.writer, self.prefix, self.origin = writer, prefix, origin
        self.merged_root = merged_root
        self.skip = frozenset(path.strip("/") for path in skip)
        self.links: dict[tuple[int, int], str] = {}  # the first name of each file that has several
        self.plural: dict[str, str] = {}  # all names of such files, with the first
        self.entries = self.left_out = 0

    def tree(self, top: str | int) -> tuple[int, int]:
        fd = os.open(top, _DIRECTORY) if isinstance(top, str) else os.dup(top)
        try:
            if self.origin is None:
                self._entry("./", b"5", os.fstat(fd), os.listxattr(fd), fd)
            self._directory(fd, None, "", False)
        finally:
            os.close(fd)
        return self.entries, self.left_out

    def other_names(self) -> None:
        """After the tree: further names of files that changed, of which only the merged mount knows."""
        top = os.open(self.merged_root, _DIRECTORY)
        try:
            for path, folder, name in aliases.names(top):
                if path in self.plural:
                    st = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    self.links[st.st_dev, st.st_ino] = self.plural[path]
            for path, folder, name in aliases.names(top):
                if path not in self.plural and path not in self.skip:
                    self._file(name, path, None, folder, True)
        finally:
            os.close(top)

    def _directory(self, upper: int | None, merged: int | None, prefix: str, whole: bool) -> None:
        """The content of one directory: what `upper` holds or, when `whole`, all that `merged` shows."""
        listed = merged if whole else upper
        assert listed is not None
        with os.scandir(listed) as entries:
            found = sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
        for name, is_file in found:
            path = prefix + name
            if path in self.skip:
                continue
            if name.startswith(WHITEOUT):
                self.left_out += 1
                continue
            try:
                if is_file:
                    self._file(name, path, upper, merged, whole)
                else:
                    self._other(name, path, upper, merged, whole, listed)
            except FileNotFoundError:
                if self.origin is None:
                    raise

    def _file(self, name: str, path: str, upper: int | None, merged: int | None, whole: bool) -> None:
        file = None
        seen = []
        if upper is not None and (not whole or _is_file(name, upper)):
            file = os.open(name, _FILE, dir_fd=upper)
        try:
            names = os.listxattr(file) if file is not None else []
            if self.prefix + "whiteout" in names and not whole:
                self._whiteout(path)
                return
            if file is not None:
                seen.append(os.fstat(file))
            if merged is not None:
                seen.append(os.stat(name, dir_fd=merged, follow_symlinks=False))
            if file is None or self.prefix + "metacopy" in names:
                other = self._merged(path, _FILE) if merged is None else os.open(name, _FILE, dir_fd=merged)
                if file is not None:
                    os.close(file)
                file = other
                names = os.listxattr(file)
                seen.append(os.fstat(file))
            if not stat.S_ISREG(seen[-1].st_mode):
                raise Changed
            if not self._linked(path, seen):
                self._content(path, file, os.fstat(file) if len(seen) > 1 else seen[0], names)
        finally:
            if file is not None:
                os.close(file)

    def _content(self, path: str, file: int, st: os.stat_result, names: list[str]) -> None:
        size = st.st_size
        runs = segments(file, size) if st.st_blocks * 512 < size else None
        if runs is None:
            self._entry(path, b"0", st, names, file, size=size)
            self.writer.data(file, size, exact=self.origin is None)
            return
        block, records = sparse_map(runs, size)
        name = os.fsencode(path)
        records += [*charset(name), (b"GNU.sparse.name", name)]
        total = len(block) + sum(length for _, length in runs)
        self._entry("GNUSparseFile.0/file", b"0", st, names, file, size=total, records=records)
        self.writer.text(block)
        self.writer.data(file, 0, runs, exact=self.origin is None)

    def _other(self, name: str, path: str, upper: int | None, merged: int | None, whole: bool, listed: int) -> None:
        st = os.stat(name, dir_fd=listed, follow_symlinks=False)
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFDIR:
            self._subdirectory(name, path, upper, merged, whole)
        elif kind == stat.S_IFCHR and st.st_rdev == 0 and not whole:
            self._whiteout(path)
        elif kind not in _KINDS or kind == stat.S_IFREG:
            self.left_out += 1  # sockets are bound again by CRIU; devices are this node's own
        elif not self._linked(path, [st]):
            here = f"/proc/self/fd/{listed}/{name}"
            names = os.listxattr(here, follow_symlinks=False)
            link = os.readlink(name, dir_fd=listed) if kind == stat.S_IFLNK else ""
            self._entry(path, _KINDS[kind], st, names, here, link=link)

    def _subdirectory(self, name: str, path: str, upper: int | None, merged: int | None, whole: bool) -> None:
        opened = []
        try:
            below = above = None
            if upper is not None and (not whole or _is_directory(name, upper)):
                below = os.open(name, _DIRECTORY, dir_fd=upper)
                opened.append(below)
            if whole:
                above = os.open(name, _DIRECTORY, dir_fd=merged)
                opened.append(above)
            elif below is not None and self.prefix + "redirect" in os.listxattr(below):
                above = self._merged(path, _DIRECTORY)
                opened.append(above)
            seen = above if above is not None else below
            assert seen is not None
            st = os.fstat(seen)
            self._entry(path + "/", b"5", st, os.listxattr(seen), seen)
            if (above is not None and not whole) or (above is None and self._opaque(seen)):
                self._entry(f"{path}/{OPAQUE}", b"0", NOTHING, [], -1)
            self._directory(below, above, path + "/", above is not None)
        finally:
            for fd in opened:
                os.close(fd)

    def _opaque(self, fd: int) -> bool:
        """`y` says that nothing of the lower layers shows; the value `x` only that whiteouts here may be xattrs."""
        mark = self.prefix + "opaque"
        return mark in os.listxattr(fd) and os.getxattr(fd, mark) == b"y"

    def _whiteout(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self.entries += 1
        self.writer.entry(f"{parent}/{WHITEOUT}{name}" if parent else WHITEOUT + name, b"0", NOTHING)

    def _linked(self, path: str, seen: list[os.stat_result]) -> bool:
        """Whether this is another name of something that is in the archive already; then it is written as one.

        A file that both views show has another inode number in each: `seen` has what is known of it.
        """
        if all(st.st_nlink < 2 for st in seen):
            return False
        keys = [(st.st_dev, st.st_ino) for st in seen]
        first = next((self.links[key] for key in keys if key in self.links), path)
        self.plural[path] = first
        self.links.update(dict.fromkeys(keys, first))
        if first == path:
            return False
        self._entry(path, b"1", seen[-1], [], -1, link=first)
        return True

    def _entry(
        self, name: str, kind: bytes, st: os.stat_result | Attributes, xattrs: list[str], source: int | str, *,
        size: int = 0, link: str = "", records: list[tuple[bytes, bytes]] | None = None,
    ) -> None:  # fmt: skip
        extra = records or []
        for key in xattrs:
            if carried(key):
                value = os.getxattr(source, key, follow_symlinks=isinstance(source, int))
                extra.append((b"SCHILY.xattr." + os.fsencode(key), value))
        if self.origin is not None and kind == b"0" and isinstance(st, os.stat_result):
            extra.append((b"GRIT.origin", f"{self.origin}:{st.st_ino}".encode()))
        self.entries += 1
        self.writer.entry(name, kind, st, size=size, link=link, records=extra)

    def _merged(self, path: str, flags: int) -> int:
        if not self.merged_root:
            raise FileNotFoundError(2, "only the merged mount has its content")
        root = os.open(self.merged_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return beneath.open_in_root(root, path, flags, _STRICT)
        finally:
            os.close(root)


def carried(xattr: str) -> bool:
    """Which extended attributes a layer carries: not overlay's, nor a label that the live container gets anew."""
    if xattr.startswith("user.overlay."):
        return False
    return xattr.startswith(("user.", "system.posix_acl_")) or xattr == "security.capability"


def _is_file(name: str, parent: int) -> bool:
    st = lstat(parent, name)
    return st is not None and stat.S_ISREG(st.st_mode)


def _is_directory(name: str, parent: int) -> bool:
    st = lstat(parent, name)
    return st is not None and stat.S_ISDIR(st.st_mode)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
