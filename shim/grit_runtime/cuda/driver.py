"""The CUDA driver API in libcuda through ctypes: the calls around a checkpoint. Used in the helper process only.

The layouts are cuda.h's: each argument struct is 64 bytes in every version from 12.8 to 13.5, reserved bytes zero.
"""

from __future__ import annotations

import ctypes
import glob
from ctypes import POINTER, Structure, byref, c_int, c_ubyte, c_uint, c_uint64
from typing import ClassVar

# Where drivers put their libraries when the loader's cache does not know them: GKE and driver images, the GPU
# Operator's driver container, and a driver tree bound into a machine.
PLACES = (
    "/usr/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/run/nvidia/driver/usr/lib/*-linux-gnu",
    "/run/nvidia/driver/usr/lib64",
    "/home/kubernetes/bin/nvidia/lib64",
)


class GpuPair(Structure):
    """CUcheckpointGpuPair, 32 bytes."""

    _fields_: ClassVar = [("old", c_ubyte * 16), ("new", c_ubyte * 16)]


class LockArgs(Structure):
    """CUcheckpointLockArgs."""

    _fields_: ClassVar = [("timeout_ms", c_uint), ("reserved0", c_uint), ("reserved1", c_uint64 * 7)]


class CheckpointArgs(Structure):
    """CUcheckpointCheckpointArgs."""

    _fields_: ClassVar = [("reserved", c_uint64 * 8)]


class RestoreArgs(Structure):
    """CUcheckpointRestoreArgs: gpuPairs since 13.0, reserved bytes before."""

    _fields_: ClassVar = [("gpu_pairs", POINTER(GpuPair)), ("count", c_uint), ("reserved", c_ubyte * 52)]


class UnlockArgs(Structure):
    """CUcheckpointUnlockArgs."""

    _fields_: ClassVar = [("reserved", c_uint64 * 8)]


def load(name: str) -> ctypes.CDLL | None:
    """The shared library `name` (its SONAME), from the loader's own search or from one of PLACES; None if nowhere."""
    for path in (name, *(found for place in PLACES for found in sorted(glob.glob(f"{place}/{name}")))):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def uuid_bytes(uuid: str) -> bytes:
    """The 16 bytes of `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`; ValueError if it is none."""
    raw = bytes.fromhex(uuid.removeprefix("GPU-").replace("-", ""))
    if len(raw) != 16:
        raise ValueError(uuid)
    return raw


def uuid_text(raw: bytes) -> str:
    digits = raw.hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Driver:
    """libcuda, initialised. Methods return CUresult numbers; each may be called from its own thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    @staticmethod
    def able(library: ctypes.CDLL) -> bool:
        """Has this libcuda the checkpoint functions (driver 570)?"""
        return hasattr(library, "cuCheckpointProcessLock")

    def init(self) -> int:
        return int(self.library.cuInit(0))

    def version(self) -> int:
        """The CUDA version that the driver speaks, as 1000 * major + 10 * minor; 0 if it does not say."""
        number = c_int(0)
        return number.value if self.library.cuDriverGetVersion(byref(number)) == 0 else 0

    def uuids(self) -> list[str]:
        """All GPUs in CUDA's order, which is not nvidia-smi's."""
        count, found = c_int(0), []
        if self.library.cuDeviceGetCount(byref(count)) != 0:
            return []
        ask = getattr(self.library, "cuDeviceGetUuid_v2", None) or self.library.cuDeviceGetUuid
        for ordinal in range(count.value):
            device, raw = c_int(0), (c_ubyte * 16)()
            if self.library.cuDeviceGet(byref(device), ordinal) == 0 and ask(raw, device) == 0:
                found.append(uuid_text(bytes(raw)))
        return found

    def state(self, pid: int) -> tuple[int, int]:
        """(result, CUprocessState) of a process, by its PID in our namespace."""
        state = c_int(-1)
        return int(self.library.cuCheckpointProcessGetState(pid, byref(state))), state.value

    def lock(self, pid: int, timeout_ms: int) -> int:
        return int(self.library.cuCheckpointProcessLock(pid, byref(LockArgs(timeout_ms=timeout_ms))))

    def checkpoint(self, pid: int) -> int:
        return int(self.library.cuCheckpointProcessCheckpoint(pid, byref(CheckpointArgs())))

    def restore(self, pid: int, pairs: list[tuple[str, str]]) -> int:
        """`pairs` names every GPU that the process saw at cuInit (old UUID, new UUID), or none at all."""
        table = (GpuPair * max(1, len(pairs)))()
        for row, (old, new) in zip(table, pairs, strict=False):
            row.old[:], row.new[:] = uuid_bytes(old), uuid_bytes(new)
        arguments = RestoreArgs(count=len(pairs))
        if pairs:
            arguments.gpu_pairs = table
        return int(self.library.cuCheckpointProcessRestore(pid, byref(arguments)))

    def unlock(self, pid: int) -> int:
        return int(self.library.cuCheckpointProcessUnlock(pid, byref(UnlockArgs())))
