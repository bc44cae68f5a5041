"""CRIU's image files: one or two magic numbers, then entries, each a size (u32, little-endian) and a message.

Source: CRIU's criu/image.c and include/magic.h (the numbers). Since format 1.1, which every CRIU since 2.0 writes, a
common number precedes the file's own one, except in the inventory. Some files go on with raw data after the first
message or between messages; of those only the first is read here.

Image files come from anywhere: only regular files are opened, symbolic links are not followed, sizes are bounded.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import BinaryIO

from grit_runtime.checks import refuse
from grit_runtime.criu.protobuf import Message, decode, malformed

COMMON, SERVICE = 0x54564319, 0x55105940
LARGEST = 64 << 20  # bytes of one message; CRIU's largest, mm with 65,530 mappings, stays under 5 MB

# Name (what precedes the first number in the file's name) -> the file's own magic number.
MAGIC = {
    "apparmor": 0x59423047,
    "autofs": 0x49353943,
    "bpfmap-data": 0x64324033,
    "bpfmap-file": 0x57506142,
    "cgroup": 0x59383330,
    "core": 0x55053847,
    "cpuinfo": 0x61404013,
    "fdinfo": 0x56213732,
    "filelocks": 0x54323616,
    "files": 0x56303138,
    "fs": 0x51403912,
    "ghost-file": 0x52583605,
    "ids": 0x54432030,
    "inventory": 0x58313116,
    "ipcns-msg": 0x55453737,
    "ipcns-sem": 0x59573019,
    "ipcns-shm": 0x46283044,
    "ipcns-var": 0x53115007,
    "memfd": 0x48453499,
    "mm": 0x57492820,
    "mountpoints": 0x55563928,
    "netdev": 0x57373951,
    "netns": 0x55933752,
    "pagemap": 0x56084025,
    "pagemap-shmem": 0x56084025,
    "pidns": 0x61157326,
    "fifo-data": 0x59333054,
    "pipes-data": 0x56453709,
    "pstree": 0x50273030,
    "remap-fpath": 0x59133954,
    "seccomp": 0x64413049,
    "sk-queues": 0x56264026,
    "stats": 0x57093306,
    "tcp-stream": 0x51465506,
    "timens": 0x43114433,
    "tty-data": 0x59413026,
    "tty-info": 0x59453036,
    "userns": 0x55474906,
    "utsns": 0x54473203,
}
# After their first message these hold data that is no message.
RAW_AFTER = ("bpfmap-data", "fifo-data", "ghost-file", "ipcns-msg", "ipcns-sem", "ipcns-shm", "pipes-data", "sk-queues",
             "tcp-stream")  # fmt: skip

Path = str | os.PathLike[str]


def kind(name: str) -> str:
    """`mountpoints-13.img` -> `mountpoints`; empty when the file is none of those whose format we know."""
    stem = name.removesuffix(".img")
    if name.startswith("stats-"):
        return "stats"
    if stem == name:
        return ""
    base, _, number = stem.rpartition("-")
    if base in MAGIC and number.isalnum():
        return base
    return stem if stem in MAGIC else ""


def exists(folder: Path, name: str) -> bool:
    """Whether `name` is there, as anything but a symbolic link."""
    try:
        return not stat.S_ISLNK(os.lstat(os.path.join(folder, name)).st_mode)
    except OSError:
        return False


def names(folder: Path) -> list[str]:
    """The names in an image folder, sorted. Refuses `image-missing` when it isn't a folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise refuse("image-missing", path=folder, what=error.strerror or "unreadable") from error


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened to read. Refuses `image-missing` for what isn't there or is a link or a device."""
    try:
        # A FIFO would make us wait; O_NONBLOCK means nothing for a regular file.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise refuse("image-missing", path=path, what="it isn't there") from None
    except OSError as error:
        raise refuse("image-missing", path=path, what=error.strerror or "unreadable") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise refuse("image-missing", path=path, what="not a regular file")
    return os.fdopen(fd, "rb")


def entries(path: Path) -> Iterator[Message]:
    """The messages of an image file, one after the other, read as they are asked for."""
    with open_file(path) as file:
        where = os.fspath(path)
        size = os.fstat(file.fileno()).st_size
        _header(file, where)
        raw_after = kind(os.path.basename(where)) in RAW_AFTER
        while message := _entry(file, where, size):
            yield message
            if raw_after:
                return


def first(path: Path) -> Message:
    """The only or first message of an image file."""
    for message in entries(path):
        return message
    raise refuse("image-truncated", path=path, what="it holds no entry")


def rewrite(source: Path, target: Path, change: Callable[[Message], Message | None]) -> None:
    """Write `target` as `source` with each message as `change` gives it back (None leaves it out).

    Written beside the target and renamed over it: a target that is a hard link of the source leaves the source alone.
    """
    name, temporary = os.path.basename(os.fspath(source)), f"{os.fspath(target)}.new"
    if kind(name) in RAW_AFTER:
        raise malformed(os.fspath(source), 0, "a file with raw data can't be rewritten")
    with open_file(source) as file:
        content = rewritten(file.read(), os.fspath(source), change)
        mode = os.fstat(file.fileno()).st_mode
    with open(_create(temporary, mode), "wb") as out:
        out.write(content)
    os.replace(temporary, target)


def rewritten(data: bytes, name: str, change: Callable[[Message], Message | None]) -> bytes:
    """As rewrite, from the bytes of a whole file called `name` to those of the new one."""
    with BytesIO(data) as file:
        out = _header(file, name)
        while message := _entry(file, name, len(data)):
            changed = change(message)
            if changed is not None:
                content = changed.encode()
                out += struct.pack("<I", len(content)) + content
    return out


def _create(path: str, mode: int) -> int:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o777)


def _header(file: BinaryIO, where: str) -> bytes:
    """Read past the magic numbers and check them; gives their bytes."""
    known = kind(os.path.basename(where))
    if not known:
        raise malformed(where, 0, "a kind of image that isn't known")
    leading = {"inventory": b"", "stats": struct.pack("<I", SERVICE)}.get(known, struct.pack("<I", COMMON))
    expected = leading + struct.pack("<I", MAGIC[known])
    header = file.read(len(expected))
    if len(header) < len(expected):
        raise refuse("image-truncated", path=where, what=f"it is {len(header)} bytes long")
    if header != expected:
        raise malformed(where, 0, f"it starts with {header.hex()}, not with {expected.hex()}")
    return header


def _entry(file: BinaryIO, where: str, size: int) -> Message | None:
    """The next message, None at the end of the file."""
    offset = file.tell()
    head = file.read(4)
    if not head:
        return None
    length = int.from_bytes(head, "little")
    if len(head) < 4 or offset + 4 + length > size:
        raise refuse("image-truncated", path=where, what=f"the entry at byte {offset} goes past its end")
    if length > LARGEST:
        raise malformed(where, offset, f"an entry of {length} bytes")
    return decode(file.read(length), where, offset + 4)
