"""What NVML knows: the GPUs, the driver's version, who uses how much. Through pynvml, in the helper process only."""

from __future__ import annotations

from typing import Any


class Missing(Exception):
    """NVML cannot be had; the text says why."""


def load() -> Any:
    """pynvml, initialised."""
    from . import driver

    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise Missing("the Python module pynvml is not installed") from None
    library = driver.load("libnvidia-ml.so.1")
    if library is not None and getattr(pynvml, "nvmlLib", None) is None:
        pynvml.nvmlLib = library  # pynvml itself looks only where the loader looks
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Missing(str(error)) from None
    return pynvml


def text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def gpus(nvml: Any) -> dict[str, dict[str, Any]]:
    """Each GPU by UUID: model, minor, memory and free memory (bytes), mig and persistence (bool or None)."""
    found = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        found[text(nvml.nvmlDeviceGetUUID(handle))] = {
            "model": text(nvml.nvmlDeviceGetName(handle)),
            "minor": int(nvml.nvmlDeviceGetMinorNumber(handle)),
            "memory": int(memory.total),
            "free": int(memory.free),
            "mig": _ask(nvml, lambda handle=handle: bool(nvml.nvmlDeviceGetMigMode(handle)[0])),
            "persistence": _ask(nvml, lambda handle=handle: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
        }
    return found


def usage(nvml: Any) -> dict[int, dict[str, int]]:
    """{pid: {GPU UUID: bytes}} of all compute processes; PIDs are of the namespace that this process lives in."""
    found: dict[int, dict[str, int]] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = text(nvml.nvmlDeviceGetUUID(handle))
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            share = found.setdefault(int(process.pid), {})
            share[uuid] = max(share.get(uuid, 0), int(process.usedGpuMemory or 0))
    return found


def served_by_mps(nvml: Any) -> list[int]:
    """The processes whose GPU work goes through an MPS server."""
    found: set[int] = set()
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes = _ask(nvml, lambda handle=handle: nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)) or []
        found.update(int(process.pid) for process in processes)
    return sorted(found)


def driver_version(nvml: Any) -> str:
    return text(nvml.nvmlSystemGetDriverVersion())


def _ask(nvml: Any, question: Any) -> Any:
    """None where this GPU or this driver does not know the question (NVMLError NOT_SUPPORTED and the like)."""
    try:
        return question()
    except (nvml.NVMLError, AttributeError):
        return None
