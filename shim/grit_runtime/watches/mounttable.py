"""The mounts that a process sees, from /proc/PID/mountinfo (proc(5)), as far as finding a watched inode needs them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")  # fs/seq_file.c mangle_path(): blank, tab, newline, backslash in octal


class Mount(NamedTuple):
    """`dev` is the kernel's dev_t of the superblock, `point` the mountpoint below the process's root."""

    number: int
    dev: int
    point: str
    kind: str

    @property
    def served(self) -> bool:
        """Answered by a program (FUSE): if that one is frozen, whoever touches the mount hangs."""
        return self.kind.startswith("fuse")


def parse(lines: Iterable[bytes]) -> dict[int, Mount]:
    """{mount id: Mount}, in the order of the file. A mount outside of the process's root is left out."""
    mounts: dict[int, Mount] = {}
    for line in lines:
        fields = line.split()
        major, _, minor = fields[2].partition(b":")
        point = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
        kind = fields[fields.index(b"-", 6) + 1]
        number = int(fields[0])
        if point.startswith(b"/"):
            mounts[number] = Mount(
                number,
                int(major) << 20 | int(minor),
                point.decode("utf-8", "surrogateescape"),
                kind.decode("ascii", "replace"),
            )
    return mounts


def read(pid: int) -> dict[int, Mount]:
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return parse(file)


def by_point(mounts: Iterable[Mount]) -> dict[str, Mount]:
    """{mountpoint: Mount}; of several at the same place the last one, which hides the others."""
    return {mount.point: mount for mount in mounts}


def below(points: Mapping[str, Mount], path: str) -> Mount | None:
    """The mount that `path` (absolute, without links) lies on; `points` from `by_point`."""
    while path != "/":
        if path in points:
            return points[path]
        path = path.rpartition("/")[0] or "/"
    return points.get("/")
