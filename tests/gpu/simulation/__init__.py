"""A SIMULATION of an NVIDIA driver, for tests on machines without a GPU: libcuda, NVML and cuda-checkpoint in C.

It is built with gcc when a test asks for it. See simulation.h for what it does and does not do.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
MIB = 1 << 20
FLAGS = ("-O1", "-g", "-Wall", "-Wextra", "-Werror")
DRIVER, CUDA = "580.95.05", 13000

#: numbers of devices that every kernel has and that CRIU cannot dump: fuse, loop-control, kvm
UNDUMPABLE = (229, 237, 232)


class SimulatedGpu(NamedTuple):
    """One line of the simulation's `gpus`; `minor` is that of its device node, major 10."""

    uuid: str
    model: str = "NVIDIA Simulated H100"
    memory: int = 4096 * MIB
    minor: int = UNDUMPABLE[0]
    mig: int = 0
    persistence: int = 1

    def line(self) -> str:
        return f"{self.uuid}|{self.model}|{self.memory}|{self.minor}|{self.mig}|{self.persistence}\n"


def uuid(number: int) -> str:
    return f"GPU-{number:08x}-1111-2222-3333-0123456789ab"


def build(target: Path) -> Path:
    """Compile the simulation into `target`: libcuda.so.1, libnvidia-ml.so.1, cuda-checkpoint, old/libcuda.so.1."""
    (target / "old").mkdir(parents=True, exist_ok=True)
    library = ("gcc", *FLAGS, "-fPIC", "-shared", "-pthread", "-fvisibility=hidden")
    for words in (
        (*library, "-Wl,-soname,libcuda.so.1", "-o", target / "libcuda.so.1", HERE / "libcuda.c"),
        (*library, "-DNO_CHECKPOINT", "-Wl,-soname,libcuda.so.1", "-o", target / "old/libcuda.so.1",
         HERE / "libcuda.c"),
        (*library, "-Wl,-soname,libnvidia-ml.so.1", "-o", target / "libnvidia-ml.so.1", HERE / "libnvidia-ml.c"),
        ("gcc", *FLAGS, "-o", target / "cuda-checkpoint", HERE / "cuda-checkpoint.c", f"-L{target}", "-l:libcuda.so.1",
         "-Wl,-rpath,$ORIGIN"),
    ):  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stderr}")
    return target


class Simulation:
    """A node's simulated GPUs: the folder that GPU_SIMULATION names."""

    def __init__(self, folder: Path, gpus: tuple[SimulatedGpu, ...], driver: str = DRIVER, cuda: int = CUDA) -> None:
        self.folder, self.gpus, self.driver, self.cuda = folder, gpus, driver, cuda
        self.write()

    def write(self) -> None:
        for gpu in self.gpus:
            (self.folder / "memory" / gpu.uuid).mkdir(parents=True, exist_ok=True)
        text = f"driver {self.driver} {self.cuda}\n" + "".join(gpu.line() for gpu in self.gpus)
        (self.folder / "gpus.new").write_text(text)
        (self.folder / "gpus.new").rename(self.folder / "gpus")

    def used(self) -> int:
        """Bytes on all GPUs; what processes had that are dead is freed first, as a driver does."""
        for path in (self.folder / "memory").glob("*/*"):
            with open(path) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process holds a lock for as long as it lives
                    path.unlink()
                except BlockingIOError:
                    continue
        return sum(path.stat().st_size for path in (self.folder / "memory").glob("*/*"))

    @contextmanager
    def fault(self, verb: str, what: str, pid: int = 0) -> Iterator[None]:
        """While this lasts, `verb` (lock, checkpoint, restore, unlock) does `what` (a CUresult, hang, die, slow=MS), in
        the process `pid` (its number in its own namespace) or in all."""
        place = self.folder / "faults"
        line = f"{verb} {what} {pid or ''}\n"
        before = place.read_text() if place.exists() else ""
        _put(place, before + line)
        try:
            yield
        finally:
            _put(place, place.read_text().replace(line, "", 1))

    def nodes(self) -> list[tuple[str, int, int]]:
        """The device nodes to make in /dev: name, major, minor. /dev/nvidia-uvm is /dev/zero, which can be mapped."""
        own = [(f"nvidia{number}", 10, gpu.minor) for number, gpu in enumerate(self.gpus)]
        return [*own, ("nvidiactl", 10, UNDUMPABLE[0]), ("nvidia-uvm", 1, 5)]


def _put(path: Path, text: str) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(text)
    new.rename(path)
