"""Read a tar archive that somebody else wrote: ustar, pax, GNU long names, GNU sparse 1.0; plain or gzip.

Strict on purpose: what a container runtime does not write is an error, and a truncated archive is never taken for a
whole one. Go's archive/tar wrote most of those that we meet (containerd, podman), our own Writer the rest.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from grit_runtime.layer.copying import SMALL, copy, write_all

_PAX_LIMIT = 1 << 20  # bytes of one extended header, as in Go
_RUNS_LIMIT = 1 << 22
_WINDOW = 256 << 10


class Corrupt(Exception):
    """Not a whole tar archive; the text says why."""


class TooLarge(Exception):
    """It unpacks to more than the limit that was set."""


class Member(NamedTuple):
    """`name` is as written, not yet checked. `stored`: bytes of data in the archive. `size`: the file's, with holes.
    `runs`: (offset, length) of the stored data in a sparse file, else None. `mtime`: nanoseconds."""

    name: str
    kind: str  # the ustar type flag; "0" for the older NUL and "7" too
    mode: int
    uid: int
    gid: int
    mtime: int
    stored: int
    size: int
    link: str
    runs: list[tuple[int, int]] | None
    xattrs: dict[str, bytes]
    origin: str


class _Plain:
    """An archive in a file, read by position."""

    def __init__(self, fd: int, limit: int | None) -> None:
        self.fd, self.at = fd, 0
        self.end = os.fstat(fd).st_size
        self._start, self._window = 0, b""
        if limit is not None and self.end > limit:
            raise TooLarge

    def read(self, size: int) -> bytes:
        first = self.at - self._start
        if not 0 <= first <= len(self._window) - size:
            self._start, self._window = self.at, os.pread(self.fd, max(size, _WINDOW), self.at)
            first = 0
        data = self._window[first : first + size]
        self.at += len(data)
        return data

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > self.end:
            raise Corrupt("it is truncated")

    def copy(self, size: int, target: int) -> None:
        if size <= SMALL:
            data = self.read(size)
            write_all(target, data)
            done = len(data)
        else:
            done = copy(self.fd, self.at, size, target)
            self.at += done
        if done != size:
            raise Corrupt("it is truncated")


class _Gzip:
    """A gzip file, of one or more members, unpacked as it is read."""

    def __init__(self, fd: int, limit: int | None) -> None:
        self._fd, self._at, self._limit = fd, 0, limit
        self._inflate = zlib.decompressobj(31)
        self._ready, self._used, self._total = b"", 0, 0

    def read(self, size: int) -> bytes:
        while len(self._ready) - self._used < size:
            more = self._more()
            if not more:
                break
            self._ready, self._used = self._ready[self._used :] + more, 0
        data = self._ready[self._used : self._used + size]
        self._used += len(data)
        return data

    def skip(self, size: int) -> None:
        while size:
            got = len(self.read(min(size, _WINDOW)))
            if not got:
                raise Corrupt("it is truncated")
            size -= got

    def copy(self, size: int, target: int) -> None:
        while size:
            data = self.read(min(size, _WINDOW))
            if not data:
                raise Corrupt("it is truncated")
            write_all(target, data)
            size -= len(data)

    def _more(self) -> bytes:
        try:
            while True:
                if self._inflate.eof:
                    rest = self._inflate.unused_data or self._input()
                    if not rest.strip(b"\0"):
                        return b""
                    self._inflate = zlib.decompressobj(31)
                else:
                    rest = self._inflate.unconsumed_tail or self._input()
                data = self._inflate.decompress(rest, _WINDOW)
                if not data and not rest and not self._inflate.eof:
                    raise Corrupt("its gzip stream is truncated")
                if data:
                    break
        except zlib.error as error:
            raise Corrupt(f"its gzip stream is damaged ({error})") from None
        self._total += len(data)
        if self._limit is not None and self._total > self._limit:
            raise TooLarge
        return data

    def _input(self) -> bytes:
        data = os.pread(self._fd, _WINDOW, self._at)
        self._at += len(data)
        return data


class Reader:
    """Iterates over the members of the archive in the descriptor `fd`; `copy` writes the data of the present one.

    `limit`: at most so many bytes of unpacked archive, else TooLarge.
    """

    def __init__(self, fd: int, limit: int | None = None) -> None:
        magic = os.pread(fd, 4, 0)
        if magic == b"\x28\xb5\x2f\xfd":
            raise Corrupt("it is compressed with zstd, which is not supported: unpack it first")
        self._from = _Gzip(fd, limit) if magic[:2] == b"\x1f\x8b" else _Plain(fd, limit)
        self._left = self._padding = 0
        self._member: Member | None = None

    def __iter__(self) -> Iterator[Member]:
        while True:
            self._from.skip(self._left + self._padding)
            self._left = self._padding = 0
            member = self._next()
            if member is None:
                return
            self._member = member
            yield member

    def copy(self, target: int) -> None:
        """The data of the present member into the empty file `target`, holes as holes."""
        member = self._member
        assert member is not None and self._left == member.stored
        for offset, length in [(0, member.stored)] if member.runs is None else member.runs:
            if member.runs is not None:
                os.lseek(target, offset, os.SEEK_SET)
            self._from.copy(length, target)
            self._left -= length
        if member.runs is not None:
            os.ftruncate(target, member.size)

    def matches(self, other: int) -> bool:
        """Whether the open file `other` has the content of the present member."""
        member = self._member
        assert member is not None and self._left == member.stored
        if os.fstat(other).st_size != member.size:
            return False
        at = 0
        for offset, length in [(0, member.stored)] if member.runs is None else [*member.runs, (member.size, 0)]:
            while at < offset:  # a hole: zeros, whether it is one there too or not
                data = os.pread(other, min(offset - at, _WINDOW), at)
                if not data or data.strip(b"\0"):
                    return False
                at += len(data)
            while length:
                data = self._from.read(min(length, _WINDOW))
                self._left -= len(data)
                if not data or os.pread(other, len(data), at) != data:
                    return False
                at, length = at + len(data), length - len(data)
        return True

    def _block(self) -> bytes:
        block = self._from.read(512)
        if len(block) != 512:
            raise Corrupt("it is truncated" if block else "its end is missing")
        return block

    def _next(self) -> Member | None:
        pax: dict[str, bytes] = {}
        longs: dict[str, bytes] = {}
        while True:
            block = self._block()
            if not any(block):
                return None
            _check_sum(block)
            kind = chr(block[156])
            size = _number(block[124:136])
            if kind not in "xgLK":
                return self._made(block, "0" if kind in ("\0", "7") else kind, size, pax, longs)
            if size > _PAX_LIMIT:
                raise Corrupt("an extended header is too large")
            body = self._from.read(size)
            if len(body) != size:
                raise Corrupt("it is truncated")
            self._from.skip(-size % 512)
            if kind == "x":
                pax.update(_records(body))
            elif kind != "g":  # a global header says nothing that matters here
                longs[kind] = body.rstrip(b"\0")

    def _made(self, block: bytes, kind: str, size: int, pax: dict[str, bytes], longs: dict[str, bytes]) -> Member:
        name = block[:100].split(b"\0")[0]
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = block[345:500].split(b"\0")[0] + b"/" + name
        name = pax.get("GNU.sparse.name", pax.get("path", longs.get("L", name)))
        link = pax.get("linkpath", longs.get("K", block[157:257].split(b"\0")[0]))
        if kind == "0" and name.endswith(b"/"):
            kind = "5"  # as older writers say that it is a directory
        stored = _decimal(pax["size"]) if "size" in pax else size
        if kind in "123456":
            stored = 0
        self._left, self._padding = stored, -stored % 512
        runs, real = None, stored
        if any(key.startswith("GNU.sparse.") for key in pax):
            if (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor")) != (b"1", b"0") or kind != "0":
                raise Corrupt("a sparse file in a format other than 1.0")
            real = _decimal(pax.get("GNU.sparse.realsize", b""))
            runs = self._map(stored, real)
        return Member(
            os.fsdecode(name), kind, _number(block[100:108]) & 0o7777,
            _decimal(pax["uid"]) if "uid" in pax else _number(block[108:116]),
            _decimal(pax["gid"]) if "gid" in pax else _number(block[116:124]),
            _time(pax["mtime"]) if "mtime" in pax else _number(block[136:148]) * 1_000_000_000,
            self._left, real, os.fsdecode(link), runs,
            {key[13:]: value for key, value in pax.items() if key.startswith("SCHILY.xattr.")},
            os.fsdecode(pax.get("GRIT.origin", b"")),
        )  # fmt: skip

    def _map(self, stored: int, real: int) -> list[tuple[int, int]]:
        numbers: list[int] = []
        text, want = b"", 1
        while len(numbers) < want:
            if self._left < 512:
                raise Corrupt("the map of a sparse file is cut off")
            text += self._block()
            self._left -= 512
            *lines, text = text.split(b"\n")
            numbers += [_decimal(line) for line in lines]
            if numbers:
                if numbers[0] > _RUNS_LIMIT:
                    raise Corrupt("the map of a sparse file is too long")
                want = 1 + 2 * numbers[0]
        del numbers[want:]
        runs = list(zip(numbers[1::2], numbers[2::2], strict=True))
        at = 0
        for offset, length in runs:
            if offset < at:
                raise Corrupt("the map of a sparse file is out of order")
            at = offset + length
        if at > real or sum(length for _, length in runs) != self._left:
            raise Corrupt("the map of a sparse file does not fit it")
        return runs


def _check_sum(block: bytes) -> None:
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 256:
        raise Corrupt("a header's checksum is wrong")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for what octal digits cannot hold
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40 or value >= 1 << 63:
            raise Corrupt("a number in a header is negative or too large")
        return value
    text = field.split(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        raise Corrupt("a number in a header is not octal")
    return int(text or b"0", 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise Corrupt("a number in an extended header is not decimal")
    return int(text)


def _time(text: bytes) -> int:
    sign = -1 if text.startswith(b"-") else 1
    seconds, _, fraction = text.lstrip(b"-").partition(b".")
    if len(seconds) > 12:
        raise Corrupt("a time is out of range")
    return sign * (_decimal(seconds) * 1_000_000_000 + _decimal(fraction[:9].ljust(9, b"0")))


def _records(body: bytes) -> dict[str, bytes]:
    """The records of an extended header, `LENGTH KEY=VALUE\\n` each."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        size = _decimal(body[at:space]) if space > at else 0
        text = body[space + 1 : at + size]
        key, equals, value = text[:-1].partition(b"=")
        if not equals or text[-1:] != b"\n" or len(text) != at + size - space - 1:
            raise Corrupt("an extended header is malformed")
        found[os.fsdecode(key)] = value
        at += size
    return found
