"""Who is on the GPU: by descriptors and mappings of /dev/nvidia*, and by the driver's answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from grit_runtime import cgroup, checks
from grit_runtime.process import stat_of

from . import names

PREFIX = "/dev/nvidia"


class Holder(NamedTuple):
    """A process with something of the GPU.

    `driver_state` is a CUprocessState, or None when CUDA does not know the process or was not asked; `bytes` is the
    GPU memory that NVML reports for it on all GPUs; `maps` counts mappings of /dev/nvidia*; `loaded`: libcuda is
    mapped, which alone says nothing.
    """

    pid: int
    fds: tuple[int, ...]
    maps: int
    driver_state: int | None = None
    bytes: int = 0
    parent: int = 0
    loaded: bool = False
    ipc: bool = False

    @property
    def holds(self) -> bool:
        """Would CRIU meet the GPU in this process?"""
        return bool(self.fds or self.maps)


class Signs(NamedTuple):
    """What the mappings of one process tell."""

    maps: int = 0  # of /dev/nvidia*
    ipc: bool = False  # CUDA's shared memory for IPC (/dev/shm/cuda.shm.UID.PID.N)
    loaded: bool = False  # libcuda


def signs(maps: str) -> Signs:
    """Read from the text of /proc/PID/maps."""
    held, ipc, loaded = 0, False, False
    for line in maps.splitlines():
        path = line[line.find("/") :] if "/" in line else ""
        if path.startswith(PREFIX):
            held += 1
        elif path:
            name = path.rpartition("/")[2]
            ipc = ipc or name.startswith("cuda.shm.")
            # one that is loaded has its code mapped; a file that is only read is nobody's driver
            loaded = loaded or name.startswith("libcuda.so") and "x" in line.split(None, 2)[1]
    return Signs(held, ipc, loaded)


def links_of(pid: int) -> dict[tuple[int, int], str]:
    """{(pid, fd): link} of one process; empty when it is gone."""
    found = {}
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    found[pid, int(entry.name)] = os.readlink(entry.path)
                except OSError:
                    continue
    except OSError:
        pass
    return found


def maps_of(pid: int) -> str:
    """The text of /proc/PID/maps; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def started(pid: int) -> int:
    """When a process began, in clock ticks since boot: with it a PID names one process only. 0 when it is gone."""
    fields = stat_of(pid)
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else 0


def ending(pid: int) -> bool:
    """Is a process gone, or on its way out? The OOM killer's victim may take seconds to give its memory back: until
    then its flags (field 9 of proc(5)'s stat) have PF_EXITING of the kernel's sched.h."""
    fields = stat_of(pid)
    return not started(pid) or bool(int(fields[6]) & 0x4)


def candidates(
    pids: Iterable[int], links: Mapping[tuple[int, int], str] | None = None, *, maps: bool = True
) -> list[Holder]:
    """Those of `pids` that hold a descriptor (`links`, if the caller walked them already) or a mapping of the GPU, or
    have libcuda loaded: one that somebody else has suspended holds nothing any more, and only the driver knows it.

    With `maps=False`, where a container has no GPU in its spec, nothing but the links is looked at.
    """
    wanted = list(pids)
    seen: dict[int, list[int]] = {pid: [] for pid in wanted}
    if links is None:
        links = {key: link for pid in wanted for key, link in links_of(pid).items()}
    for (pid, fd), link in links.items():
        if link.startswith(PREFIX) and pid in seen:
            seen[pid].append(fd)
    found = []
    for pid in wanted:
        sign = signs(maps_of(pid)) if maps or seen[pid] else Signs()
        if seen[pid] or sign.maps or sign.loaded:
            fields = stat_of(pid)
            parent = int(fields[1]) if len(fields) > 1 else 0
            found.append(Holder(pid, tuple(sorted(seen[pid])), sign.maps, None, 0, parent, sign.loaded, sign.ipc))
    return found


def frozen(pid: int) -> bool:
    """Does a freezer keep this process from answering?"""
    try:
        group = cgroup.of(pid)
        with open(f"{group.path}/{'freezer.state' if group.version == 1 else 'cgroup.events'}") as file:
            text = file.read()
    except (OSError, checks.Refusal):
        return False
    return not text.startswith("THAWED") if group.version == 1 else "frozen 1" in text


def held_by(pid: int) -> bool:
    """Does this process hold a descriptor or a mapping of the GPU?"""
    return any(holder.holds for holder in candidates([pid]))


def judge(found: list[Holder], *, major: int, mps: Iterable[int] = ()) -> None:
    """Refuse what cannot be suspended. `found` has the driver's answers, `major` is the driver's major version (0 if
    unknown), `mps` are the PIDs whose work goes through an MPS server."""
    by_pid, through_mps = {holder.pid for holder in found}, set(mps)
    for holder in found:
        if holder.pid in through_mps:
            raise checks.refuse("gpu-mps", pid=holder.pid)
        if holder.driver_state == names.FAILED:
            raise checks.refuse("cuda-failed-state", pid=holder.pid)
        if holder.ipc and 0 < major < 610:
            raise checks.refuse("cuda-ipc", pid=holder.pid, driver=major)
        if holder.driver_state is None and holder.holds:
            facts = {"pid": holder.pid, "fds": len(holder.fds), "maps": holder.maps}
            if holder.parent in by_pid:
                raise checks.refuse("gpu-forked-child", parent=holder.parent, **facts)
            raise checks.refuse("gpu-without-cuda", **facts)


def prove_absent(pids: Iterable[int]) -> None:
    """Refuse `gpu-still-held` if any process holds a descriptor or a mapping of the GPU: CRIU could not dump it."""
    for holder in candidates(pids):
        if holder.holds:
            raise checks.refuse("gpu-still-held", pid=holder.pid, fds=len(holder.fds), maps=holder.maps)
