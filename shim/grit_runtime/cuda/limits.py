"""Memory limits of control groups, raised for the time in which GPU memory lies in the processes, and put back.

CUDA copies GPU memory into anonymous memory of the process, which its control group pays for: a limit below that gets
the workload killed by the OOM killer. Every group from the process's own to the root counts (a pod's too).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

UNLIMITED_V1 = 1 << 62  # cgroup v1 writes "no limit" as a number near 2^63, cut to pages
# v2: memory.high throttles a group above it almost to a halt, so it counts as a limit.
FILES_V2 = ("memory.max", "memory.high")
# v1: the second holds memory and swap together and may never be below the first.
FILES_V1 = ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes")


class Level(NamedTuple):
    """One control group: its folder, the bytes it uses, its limits as (file name, bytes), unlimited ones left out."""

    folder: str
    used: int
    limits: tuple[tuple[str, int], ...]


class Raise(NamedTuple):
    """One write: the file, what to write, what stood there."""

    file: str
    new: int
    old: int


def plan(levels: Iterable[Level], need: int) -> list[Raise]:
    """What must be written so that each level can take `need` more bytes. Pure."""
    return [
        Raise(f"{level.folder}/{name}", level.used + need, limit)
        for level in levels
        for name, limit in level.limits
        if limit < level.used + need
    ]


def raise_all(raises: Iterable[Raise]) -> None:
    """In the order of the plan: in a v1 group the limit of memory and swap must rise before that of memory."""
    for step in raises:
        write(step.file, step.new)


def lower_all(limits: Iterable[Iterable[Any]], patience: float = 10.0) -> list[str]:
    """The undo: `limits` are [file, bytes] as they stood before. Returns the files that could not be put back.

    A limit below what a group really needs would kill in it; memory that CUDA just gave back may take a moment.
    """
    left, until = [], time.monotonic() + patience
    # within a v1 group memory must come down before memory and swap
    for file, old in reversed([tuple(pair) for pair in limits]):
        while os.path.exists(file):
            if _fits(os.path.dirname(file), int(old)) and write(file, int(old)):
                break
            if time.monotonic() > until:
                left.append(str(file))
                break
            time.sleep(0.05)
    return left


def write(file: str, value: int) -> bool:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, str(value).encode())
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _fits(folder: str, limit: int) -> bool:
    """Is what a group cannot give back (anonymous and shared memory) below `limit`?"""
    rows = dict(line.split(" ", 1) for line in _read(f"{folder}/memory.stat").splitlines() if " " in line)
    kinds = ("anon", "shmem") if "anon" in rows else ("total_rss", "total_shmem")
    return sum(int(rows.get(kind, 0)) for kind in kinds) <= limit


# --- reading the tree ---


def mounts(text: str) -> tuple[str, str]:
    """(folder of the v1 memory hierarchy or "", folder of the v2 hierarchy or "") from /proc/self/mountinfo."""
    first, second = "", ""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point, kind, options = left.split(" ")[4], right.split(" ")[0], right.rsplit(" ", 1)[-1].split(",")
        if kind == "cgroup" and "memory" in options:
            first = first or point
        elif kind == "cgroup2":
            second = second or point
    return first, second


def group_of(text: str, *, version: int) -> str | None:
    """The memory group's path from the text of /proc/PID/cgroup; None if it has none of that version."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if (version == 2 and controllers == "") or (version == 1 and "memory" in controllers.split(",")):
            return path
    return None


def levels_of(pids: Iterable[int]) -> list[Level]:
    """The limited control groups of these processes, inner ones first, each once."""
    v1, v2 = mounts(_read("/proc/self/mountinfo"))
    folders: dict[str, int] = {}
    for pid in pids:
        text = _read(f"/proc/{pid}/cgroup")
        if v1 and (path := group_of(text, version=1)) is not None:
            folders.update(dict.fromkeys(_chain(v1, path), 1))
        elif v2 and (path := group_of(text, version=2)) is not None:
            folders.update(dict.fromkeys(_chain(v2, path), 2))
    ordered = sorted(folders, key=lambda folder: -folder.count("/"))
    return [level for folder in ordered if (level := _level(folder, folders[folder])) is not None]


def levels_above(cgroups_path: str) -> list[Level]:
    """The limited groups that will hold a container's own, from `linux.cgroupsPath` of its spec, inner ones first."""
    path = parent_path(cgroups_path)
    v1, v2 = mounts(_read("/proc/self/mountinfo"))
    top, version = (v1, 1) if v1 else (v2, 2)
    if not path or not top:
        return []
    return [level for folder in _chain(top, path) if (level := _level(folder, version)) is not None]


def parent_path(cgroups_path: str) -> str:
    """The parent group of a container: of `/a/b/ID` it is `/a/b`; of systemd's `kubepods-x.slice:cri:ID` the slice with
    those that hold it, `/kubepods.slice/kubepods-x.slice`. "" when there is none. Pure."""
    parts = cgroups_path.split(":")
    if len(parts) == 3:
        name = parts[0].removesuffix(".slice")
        if not name or name == "-" or not re.fullmatch(r"[\w\-\\.@]+", name):
            return ""
        words = name.split("-")
        return "".join("/" + "-".join(words[: count + 1]) + ".slice" for count in range(len(words)))
    path = os.path.normpath("/" + cgroups_path.lstrip("/"))
    return os.path.dirname(path) if path != "/" and not path.startswith("/..") else ""


def available() -> int:
    """Bytes that the node can still give, MemAvailable of /proc/meminfo."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _chain(top: str, path: str) -> list[str]:
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:  # outside the cgroup namespace that we see
        return []
    return [os.path.join(top, *names[:count]) for count in range(len(names), 0, -1)]


def _level(folder: str, version: int) -> Level | None:
    used = _read(f"{folder}/{'memory.usage_in_bytes' if version == 1 else 'memory.current'}").strip()
    found = []
    for name in FILES_V1 if version == 1 else FILES_V2:
        text = _read(f"{folder}/{name}").strip()
        if text.isdigit() and int(text) < UNLIMITED_V1:
            found.append((name, int(text)))
    return Level(folder, int(used), tuple(found)) if used.isdigit() and found else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# --- the spec of a container that is going to be restored ---


def raise_spec(spec: dict[str, Any], more: int) -> dict[str, Any]:
    """Raise the memory limits in a config.json by `more` bytes, in place. Returns what stood there, for `put_back`:
    {"memory": {...}, "unified": {...}} with the raised keys only. Pure but for `spec`."""
    resources = (spec.get("linux") or {}).get("resources") or {}
    memory, unified = resources.get("memory") or {}, resources.get("unified") or {}
    old: dict[str, Any] = {"memory": {}, "unified": {}}
    for name in ("limit", "swap"):
        value = memory.get(name)
        if isinstance(value, int) and value > 0:
            old["memory"][name] = value
            memory[name] = value + more
    for name in FILES_V2:
        value = unified.get(name)
        if isinstance(value, str) and value.isdigit():
            old["unified"][name] = value
            unified[name] = str(int(value) + more)
    return old


def originals(pid: int, old: dict[str, Any]) -> list[list[Any]]:
    """What `raise_spec` returned, as [file, bytes] of the control group in which `pid` lives now, for `lower_all`."""
    v1, v2 = mounts(_read("/proc/self/mountinfo"))
    text = _read(f"/proc/{pid}/cgroup")
    memory, unified = old.get("memory") or {}, old.get("unified") or {}
    if v1 and (path := group_of(text, version=1)) is not None:
        files = {"swap": "memory.memsw.limit_in_bytes", "limit": "memory.limit_in_bytes"}
        pairs = [(files[name], memory[name]) for name in files if name in memory]
        top = v1
    elif v2 and (path := group_of(text, version=2)) is not None:
        limit = unified.get("memory.max") or memory.get("limit")
        pairs = [("memory.max", limit)] if limit else []
        pairs += [("memory.high", unified["memory.high"])] if "memory.high" in unified else []
        top = v2
    else:
        return []
    folder = next(iter(_chain(top, path)), "")
    return [[f"{folder}/{name}", int(value)] for name, value in pairs] if folder else []
