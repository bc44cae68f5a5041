"""The GPUs of a container: what a checkpoint says of them, and which live ones take their place. Pure, but for the
two functions at the end that read device nodes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from grit_runtime import checks

from .carry.copying import FILES
from .carry.regions import PAGE

UUID = re.compile(r"GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
NODE = re.compile(r"nvidia([0-9]+)")
MOST_GPUS, MOST_PROCESSES, MOST_REGIONS = 1024, 1 << 22, 1 << 16


class Gpu(NamedTuple):
    """One GPU. Sizes in bytes; `used` is what the container's processes use of it; `mig` and `persistence` are None
    where the driver does not say."""

    uuid: str
    model: str
    memory: int
    free: int = 0
    minor: int = -1
    mig: bool | None = None
    persistence: bool | None = None
    used: int = 0


class Process(NamedTuple):
    """A suspended process: its PID in the container's namespace, the CUprocessState it was in, bytes on the GPU."""

    pid: int
    before: int
    bytes: int


class Beside(NamedTuple):
    """Memory of a suspended process (its PID in the container) that is in a file of its own, manifest.gpu_memory(pid,
    number), not in CRIU's images: whole pages, (start, size) in bytes, in the file's order."""

    pid: int
    number: int
    regions: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.regions)


class Part(NamedTuple):
    """The GPU part of a manifest. `bytes`: GPU memory by NVML; `taken`: how much grew in the processes by it; `beside`:
    what of that CRIU has not."""

    driver: str
    cuda: int
    gpus: tuple[Gpu, ...]
    processes: tuple[Process, ...]
    bytes: int
    taken: int
    beside: tuple[Beside, ...]


class Live(NamedTuple):
    """The node and the GPUs of the container that is going to be restored, in CUDA's order."""

    driver: str
    cuda: int
    way: str
    maps: bool  # can a restore go to GPUs with other UUIDs?
    machine: str
    gpus: tuple[Gpu, ...]


def from_answer(rows: Sequence[Mapping[str, Any]]) -> list[Gpu]:
    """The helper's inventory."""
    return [Gpu(**{name: row[name] for name in Gpu._fields if name in row}) for row in rows]


def of_container(gpus: Sequence[Gpu], minors: Collection[int]) -> list[Gpu]:
    """Those whose device nodes the container has; all of them where it shows none (nothing else is known then)."""
    return [gpu for gpu in gpus if gpu.minor in minors] if minors else list(gpus)


def to_json(part: Part) -> dict[str, Any]:
    return {
        "driver": part.driver,
        "cuda": part.cuda,
        "gpus": [{"uuid": gpu.uuid, "model": gpu.model, "memory": gpu.memory, "used": gpu.used} for gpu in part.gpus],
        "processes": [process._asdict() for process in part.processes],
        "bytes": part.bytes,
        "taken": part.taken,
        "beside": [one._asdict() for one in part.beside],
    }


def from_json(value: object) -> Part:
    """The part as an untrusted manifest has it; refuses `gpu-manifest-invalid`, naming the field."""
    top = _fields(value, "gpu")
    gpus = tuple(_gpu(row, f"gpu.gpus[{n}]") for n, row in enumerate(_rows(top, "gpus", MOST_GPUS)))
    rows = enumerate(_rows(top, "processes", MOST_PROCESSES))
    processes = tuple(_process(row, f"gpu.processes[{n}]") for n, row in rows)
    if len({gpu.uuid for gpu in gpus}) != len(gpus):
        raise checks.refuse("gpu-manifest-invalid", field="gpu.gpus: a UUID twice")
    if len({process.pid for process in processes}) != len(processes):
        raise checks.refuse("gpu-manifest-invalid", field="gpu.processes: a PID twice")
    rows = enumerate(_rows(top, "beside", MOST_PROCESSES) if "beside" in top else [])
    beside = tuple(_beside(row, f"gpu.beside[{n}]") for n, row in rows)
    if not {one.pid for one in beside} <= {process.pid for process in processes}:
        raise checks.refuse("gpu-manifest-invalid", field="gpu.beside: a PID that is no GPU process")
    if len({(one.pid, one.number) for one in beside}) != len(beside):
        raise checks.refuse("gpu-manifest-invalid", field="gpu.beside: a file twice")
    return Part(
        _text(top, "driver", "gpu", 64),
        _number(top, "cuda", "gpu"),
        gpus,
        processes,
        _number(top, "bytes", "gpu"),
        _number(top, "taken", "gpu"),
        beside,
    )


def map_gpus(part: Part, live: Live, allow: Collection[str] = ()) -> list[tuple[str, str]]:
    """(old UUID, new UUID) for every GPU of the checkpoint, in CUDA's order. Pure.

    Refuses gpu-mig, driver-mismatch (unless in `allow`), gpu-too-few, gpu-other-model, gpu-less-memory,
    gpu-memory-busy, gpu-map-unsupported, gpu-persistence. GPUs that are the same as before keep their places;
    else the first takes the first's place and so on, for there are programs that remember ordinals.
    """
    if part.driver != live.driver and "driver-mismatch" not in allow:
        raise checks.refuse("driver-mismatch", old=part.driver, new=live.driver or "none")
    if len(live.gpus) < len(part.gpus):
        raise checks.refuse("gpu-too-few", old=len(part.gpus), new=len(live.gpus))
    by_uuid = {gpu.uuid: gpu for gpu in live.gpus}
    same = all(gpu.uuid in by_uuid for gpu in part.gpus)
    pairs = [(old, by_uuid[old.uuid] if same else live.gpus[place]) for place, old in enumerate(part.gpus)]
    for old, new in pairs:
        _fits(old, new)
        if live.way == "binary" and new.persistence is False:
            raise checks.refuse("gpu-persistence", gpu=new.uuid)
    if not same and not live.maps:
        raise checks.refuse("gpu-map-unsupported", driver=live.driver)
    return [(old.uuid, new.uuid) for old, new in pairs]


def _fits(old: Gpu, new: Gpu) -> None:
    if new.mig:
        raise checks.refuse("gpu-mig", gpu=new.uuid)
    if new.model != old.model:
        raise checks.refuse("gpu-other-model", old=old.model, new=new.model)
    if new.memory < old.memory:
        raise checks.refuse("gpu-less-memory", old=old.memory >> 20, new=new.memory >> 20, gpu=new.uuid)
    if new.free < old.used:
        raise checks.refuse("gpu-memory-busy", need=old.used >> 20, free=new.free >> 20, gpu=new.uuid)


def _fields(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise checks.refuse("gpu-manifest-invalid", field=field)
    return value


def _rows(top: dict[str, Any], name: str, most: int) -> list[Any]:
    rows = top.get(name)
    if not isinstance(rows, list) or len(rows) > most:
        raise checks.refuse("gpu-manifest-invalid", field=f"gpu.{name}")
    return rows


def _number(row: dict[str, Any], name: str, field: str, most: int = 1 << 60) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise checks.refuse("gpu-manifest-invalid", field=f"{field}.{name}")
    return value


def _text(row: dict[str, Any], name: str, field: str, most: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise checks.refuse("gpu-manifest-invalid", field=f"{field}.{name}")
    return value


def _gpu(value: object, field: str) -> Gpu:
    row = _fields(value, field)
    uuid = _text(row, "uuid", field, 64)
    if not UUID.fullmatch(uuid):
        raise checks.refuse("gpu-manifest-invalid", field=f"{field}.uuid")
    memory, used = _number(row, "memory", field), _number(row, "used", field)
    return Gpu(uuid, _text(row, "model", field, 256), memory, used=used)


def _process(value: object, field: str) -> Process:
    row = _fields(value, field)
    pid = _number(row, "pid", field, MOST_PROCESSES)
    return Process(pid, _number(row, "before", field, 2), _number(row, "bytes", field))


def _beside(value: object, field: str) -> Beside:
    row = _fields(value, field)
    regions = []
    for number, pair in enumerate(_rows(row, "regions", MOST_REGIONS)):
        if not isinstance(pair, list) or len(pair) != 2 or not all(_whole_pages(one) for one in pair):
            raise checks.refuse("gpu-manifest-invalid", field=f"{field}.regions[{number}]")
        regions.append((pair[0], pair[1]))
    if any(first + size > second for (first, size), (second, _) in zip(regions, regions[1:], strict=False)):
        raise checks.refuse("gpu-manifest-invalid", field=f"{field}.regions: not in order")
    pid, number = _number(row, "pid", field, MOST_PROCESSES), _number(row, "number", field, FILES - 1)
    return Beside(pid, number, tuple(regions))


def _whole_pages(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 62 and value % PAGE == 0


# --- device nodes ---


def in_spec(spec: Mapping[str, Any]) -> bool:
    """Does a config.json give its container anything of an NVIDIA GPU: a device, a mount, or, in the toolkit's older
    mode, a prestart hook that will? A container without is never asked for mappings of the GPU."""
    linux = spec.get("linux") or {}
    devices = [device.get("path") for device in linux.get("devices") or []]
    mounts = [mount.get(name) for mount in spec.get("mounts") or [] for name in ("source", "destination")]
    hooks = [hook.get("path") for rows in (spec.get("hooks") or {}).values() for hook in rows or []]
    return any(isinstance(path, str) and ("nvidia" in path or "libcuda" in path) for path in devices + mounts + hooks)


def minors_of_spec(spec: Mapping[str, Any]) -> set[int]:
    """The minor numbers of /dev/nvidiaN that a config.json gives its container: as devices, or as bind mounts."""
    found = set()
    for device in (spec.get("linux") or {}).get("devices") or []:
        path, minor = device.get("path"), device.get("minor")
        if isinstance(path, str) and isinstance(minor, int) and NODE.fullmatch(path.removeprefix("/dev/")):
            found.add(minor)
    for mount in spec.get("mounts") or []:
        path = mount.get("source")
        if isinstance(path, str) and NODE.fullmatch(path.removeprefix("/dev/")):
            try:
                found.add(os.minor(os.stat(path).st_rdev))
            except OSError:
                continue
    return found


def minors_of_process(pid: int) -> set[int]:
    """The minor numbers of /dev/nvidiaN as the process `pid` sees them."""
    found: set[int] = set()
    try:
        folder = os.open(f"/proc/{pid}/root/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        for name in os.listdir(folder):
            if NODE.fullmatch(name):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISCHR(status.st_mode):
                    found.add(os.minor(status.st_rdev))
    except OSError:
        pass
    finally:
        os.close(folder)
    return found
