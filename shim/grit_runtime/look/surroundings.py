"""What lies around the processes of a container: mounts, namespaces, shared memory, control groups, strangers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from grit_runtime import cgroup, mounts
from grit_runtime.checks import Refusal
from grit_runtime.look import proc, sockets
from grit_runtime.look.facts import Process, Shared


def strays(init: int, pids: set[int]) -> list[tuple[int, str]]:
    """Children of the first process that somebody put into its PID namespace but not into its cgroup."""
    found = []
    for pid in proc.children(init):
        if pid not in pids:
            try:
                name, state = proc.stat(proc.read(f"/proc/{pid}/stat"))[:2]
            except OSError:
                continue
            # one that the container has forked since its processes were listed is no stranger
            if state not in "ZX" and not _same_group(pid, init):
                found.append((pid, name))
    return found


def freezer(init: int) -> int:
    """The version of the control groups that freeze the container."""
    try:
        return cgroup.of(init).version
    except Refusal:
        return 2


def _same_group(pid: int, init: int) -> bool:
    try:
        return mounts.below(cgroup.of(pid).path, cgroup.of(init).path)
    except (OSError, Refusal):
        return True  # it is gone


def shared(segments: Sequence[tuple[int, int]]) -> list[Shared]:
    """The System V segments that are mapped, with the number of their attachments in the whole IPC namespace."""
    if not segments:
        return []
    try:
        text = sockets.within(segments[0][0], "ipc", sockets.CLONE_NEWIPC, lambda: proc.read("/proc/sysvipc/shm"))
        table = shm_table(text)
    except OSError:
        table = {}
    ours: dict[int, list[int]] = {}
    for pid, id in segments:
        ours.setdefault(id, []).append(pid)
    return [Shared(pids[0], id, *table.get(id, (0, -1)), len(pids)) for id, pids in ours.items()]


def shm_table(text: str) -> dict[int, tuple[int, int]]:
    """/proc/sysvipc/shm: shmid -> (size, number of attachments)."""
    rows = [line.split() for line in text.splitlines()]
    heads = rows[0]
    id, size, count = heads.index("shmid"), heads.index("size"), heads.index("nattch")
    return {int(row[id]): (int(row[size]), int(row[count])) for row in rows[1:]}


def host_namespaces(processes: Sequence[Process], init: int) -> frozenset[str]:
    """Kinds of namespaces that the container shares with us, the host."""
    first: Mapping[str, str] = next((p.namespaces for p in processes if p.pid == init), {})
    shared = set()
    for kind, link in first.items():
        try:
            if os.readlink(f"/proc/self/ns/{kind}") == link:
                shared.add(kind)
        except OSError:
            continue
    return frozenset(shared)


def behind(init: int, spec: dict[str, Any] | None) -> tuple[list[str], list[str], str]:
    """Mountpoints of foreign mounts behind the spec, and of mounts that are slaves of a peer group outside; a layer of
    the rootfs that lies on an overlay."""
    if spec is None:
        return [], [], ""
    try:
        table = mounts.read(init)
        host = mounts.read("self")
    except OSError:
        return [], [], ""
    root = f"/proc/{init}/root"
    known = mounts.known(spec, lambda path: mounts.inside(root, path))
    groups = {tag[7:] for mount in table for tag in mount.optional if tag.startswith("shared:")}
    masters = [
        mount.point
        for mount in table
        if any(tag.startswith("master:") and tag[7:] not in groups for tag in mount.optional)
    ]
    foreign = [mount.point for mount in mounts.foreign(table, known, host)]
    layer = stacked(table, host)
    return foreign, masters, layer if layer and _lost(init, table) else ""


def _lost(init: int, table: Sequence[mounts.Mount]) -> bool:
    """Whether the first file that the first process has mapped is on a mount that the container doesn't have."""
    line = next((line for line in proc.read(f"/proc/{init}/maps").splitlines() if "/" in line), "")
    start, _, end = line.partition(" ")[0].partition("-")
    try:
        fd = os.open(f"/proc/{init}/map_files/{int(start, 16):x}-{int(end, 16):x}", os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        mount = proc.info(os.getpid(), fd).mount
    finally:
        os.close(fd)
    return all(mount != one.id for one in table)


def stacked(table: Sequence[mounts.Mount], host: Sequence[mounts.Mount]) -> str:
    """A lower layer of the rootfs that lies on an overlay of the host, or "". The kernel then shows the files that are
    executed and mapped on a mount of its own, which CRIU can't find. Relative layers (containerd's shortened ones) are
    not looked at: they lie beside the upper one, which is never on an overlay."""
    top = next((mount for mount in reversed(table) if mount.point == "/"), None)
    if top is None or top.fstype != "overlay":
        return ""
    places = {mount.point: mount.fstype for mount in host}
    for option in top.super_options:
        name, _, value = option.partition("=")
        for layer in mounts.unescape(value).split(":") if name in ("lowerdir", "lowerdir+") else ():
            place = layer
            while place.startswith("/") and place not in places:
                place = place.rpartition("/")[0] or "/"
            if places.get(place) == "overlay":
                return layer
    return ""
