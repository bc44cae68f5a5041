"""/proc/PID/mountinfo and the names in it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import NamedTuple


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo (proc(5)); `point` is as that process sees it, `dev` is "major:minor"."""

    id: int
    parent: int
    dev: str
    root: str
    point: str
    options: tuple[str, ...]
    optional: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def parse(text: str) -> list[Mount]:
    """The lines of a mountinfo. A line that isn't one is a ValueError."""
    return [_line(line) for line in text.splitlines()]


def read(pid: int | str) -> list[Mount]:
    """The mounts in the namespace of process `pid`; OSError when it has gone."""
    with open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as file:
        return parse(file.read())


def _line(line: str) -> Mount:
    fields = line.split(" ")
    dash = fields.index("-", 6)
    fstype, source, super_options = (fields[dash + 1 :] + [""])[:3]
    return Mount(
        int(fields[0]), int(fields[1]), fields[2], unescape(fields[3]), unescape(fields[4]),
        tuple(fields[5].split(",")), tuple(fields[6:dash]), fstype, unescape(source), tuple(super_options.split(",")),
    )  # fmt: skip


def unescape(field: str) -> str:
    r"""A field of /proc without its octal escapes (the kernel's mangle(): \040, \011, \012, \134, \043)."""
    if "\\" not in field:
        return field
    parts = field.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def below(path: str, top: str) -> bool:
    """Whether `path` is `top` or lies in it, by the names alone."""
    return top == "/" or path == top or path.startswith(top.rstrip("/") + "/")


def inside(root: str, path: str, readlink: Callable[[str], str] = os.readlink) -> str:
    """`path` as a process with the root folder `root` would reach it: absolute, its symlinks followed and never out.

    runc's keys are made in the same way (securejoin), so /var/run/x becomes /run/x where /var/run is a symlink.
    """
    done, todo, links = "", path.split("/")[::-1], 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = posixpath.dirname(done).rstrip("/")
            continue
        try:
            target = readlink(f"{root}{done}/{part}")
        except OSError:
            done = f"{done}/{part}"
            continue
        links += 1
        if links > 40:
            raise OSError(40, "Too many levels of symbolic links", path)
        if target.startswith("/"):
            done = ""
        todo.extend(target.split("/")[::-1])
    return done or "/"
