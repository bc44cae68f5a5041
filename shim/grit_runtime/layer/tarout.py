"""A tar archive in the POSIX pax format, written as fast as Python can: the container's tasks are stopped meanwhile.

Standard tarfile is too slow for that, and it can neither write a sparse file nor a name that isn't text.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

from grit_runtime.layer.copying import SMALL, copy, write_all

# ustar: name mode uid gid size mtime checksum type linkname magic version uname gname devmajor devminor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_BUFFER = 1 << 20


class Attributes(NamedTuple):
    """The part of a stat result that a header takes."""

    st_mode: int = 0
    st_uid: int = 0
    st_gid: int = 0
    st_mtime_ns: int = 0


NOTHING = Attributes()


class Changed(Exception):
    """A file had fewer bytes than its size said."""


class Writer:
    """Writes to the descriptor `out` at its current position. `bytes` counts all that went into the archive."""

    def __init__(self, out: int) -> None:
        self.out = out
        self.bytes = 0
        self._buffer = bytearray()
        self._pax: dict[int, bytes] = {}

    def entry(
        self,
        name: str,
        kind: bytes,
        st: os.stat_result | Attributes,
        *,
        size: int = 0,
        link: str = "",
        records: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """A header: `kind` is the ustar type flag, `size` the bytes of data that follow, `records` further pax ones."""
        path, target = os.fsencode(name), os.fsencode(link)
        extra = records or []
        seconds, nanoseconds = divmod(st.st_mtime_ns, 1_000_000_000)
        if nanoseconds or not 0 <= seconds < 1 << 33:
            extra = [(b"mtime", pax_time(st.st_mtime_ns)), *extra]
        if len(path) > 100 or not path.isascii():
            extra = [*charset(path), (b"path", path), *extra]
        if target and (len(target) > 100 or not target.isascii()):
            extra = [*charset(target), (b"linkpath", target), *extra]
        uid, gid, bound = st.st_uid, st.st_gid, size
        if uid >= 1 << 21:
            extra, uid = [*extra, (b"uid", b"%d" % uid)], 0
        if gid >= 1 << 21:
            extra, gid = [*extra, (b"gid", b"%d" % gid)], 0
        if size >= 1 << 33:
            extra, bound = [*extra, (b"size", b"%d" % size)], 0
        if extra:
            self._extended(b"".join(record(key, value) for key, value in extra))
        when = seconds if 0 <= seconds < 1 << 33 else 0
        self._put(header(path, kind, stat.S_IMODE(st.st_mode), uid, gid, bound, when, target))

    def data(self, file: int, size: int, runs: list[tuple[int, int]] | None = None, *, exact: bool = True) -> None:
        """The content that the last header announced: `size` bytes of `file`, or its `runs` of (offset, length).

        A file that has become shorter since is an error, or with `exact` False filled up with zeros.
        """
        total = 0
        for offset, length in [(0, size)] if runs is None else runs:
            total += length
            if length <= SMALL:
                piece = os.pread(file, length, offset)
                done = len(piece)
                self._put(piece)
            else:
                self.flush()
                done = copy(file, offset, length, self.out)
                self.bytes += done
            if done < length and exact:
                raise Changed
            while done < length:
                piece = bytes(min(length - done, _BUFFER))
                self._put(piece)
                done += len(piece)
        self._put(bytes(-total % 512))

    def text(self, block: bytes) -> None:
        """Raw blocks of 512 bytes, as the map of a sparse file."""
        self._put(block)

    def finish(self) -> None:
        """The two empty blocks at the end, and everything on its way to the kernel."""
        self._put(bytes(1024))
        self.flush()

    def flush(self) -> None:
        if self._buffer:
            write_all(self.out, self._buffer)
            self._buffer = bytearray()

    def _put(self, piece: bytes) -> None:
        self._buffer += piece
        self.bytes += len(piece)
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def _extended(self, body: bytes) -> None:
        size = len(body)
        head = self._pax.get(size)
        if head is None:
            head = self._pax[size] = header(b"PaxHeaders.0/entry", b"x", 0o600, 0, 0, size, 0, b"")
        self._put(head + body + bytes(-size % 512))


def header(path: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, when: int, link: bytes) -> bytes:
    """One ustar header block; a name or link that is too long is cut here, its pax record has the whole of it."""
    block = _HEADER.pack(
        path[:100], b"%07o" % mode, b"%07o" % uid, b"%07o" % gid, b"%011o" % size, b"%011o" % when, b" " * 8, kind,
        link[:100], b"ustar", b"00", b"", b"", b"%07o" % 0, b"%07o" % 0, b"",
    )  # fmt: skip
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:])


def record(key: bytes, value: bytes) -> bytes:
    """One pax record: its own length in decimal, key and value."""
    rest = len(key) + len(value) + 3  # a space, an equals sign, a newline
    size = rest + len(str(rest))
    if len(str(size)) != len(str(rest)):
        size = rest + len(str(size))
    return b"%d %b=%b\n" % (size, key, value)


def pax_time(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    return b"%b%d.%09d" % (b"-" if nanoseconds < 0 else b"", seconds, fraction)


def charset(text: bytes) -> list[tuple[bytes, bytes]]:
    """POSIX wants names in UTF-8; those that are not must be announced."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return [(b"hdrcharset", b"BINARY")]
    return []


def sparse_map(runs: list[tuple[int, int]], size: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The block that precedes a sparse file's data, and its pax records, but for the name (GNU tar's format 1.0).

    The last pair must end where the file ends, so a hole at the end gets an empty run there.
    """
    pairs = runs if runs and sum(runs[-1]) == size else [*runs, (size, 0)]
    text = b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % size)]
    return text + bytes(-len(text) % 512), records
