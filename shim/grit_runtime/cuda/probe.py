"""A program with known GPU memory, for `gritctl gpu-test` and the tests on a GPU. It stands alone, in containers.

    python3 probe.py FOLDER --bytes N [--torch] [--processes N] [--managed] [--fork] [--watch] [--hold N]

Each process fills N bytes of GPU memory with a pattern that its number and N alone determine, then counts on the GPU.
It writes FOLDER/status.P ({"process", "pid", "ticks", "backend", "hash", "bytes"}) and answers FOLDER/ask.P (a word)
with FOLDER/answer.P ({"word", "hash", "ticks", "watches"}): the hash is made anew from what is on the GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

CHUNK = 4 << 20
COUNTER = 8  # bytes in front of the pattern that count


def pattern(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes in chunks; each chunk differs from the others, none is made of zeros."""
    base = b"".join(hashlib.sha256(b"%d.%d" % (seed, n)).digest() for n in range(2048))  # 64 KiB
    block = base * (CHUNK // len(base) + 2)
    for number, start in enumerate(range(0, size, CHUNK)):
        shift = number * 4099 % len(base)
        yield block[shift : shift + min(CHUNK, size - start)]


def digest(chunks: Iterator[bytes]) -> str:
    """The hash of the hashes of the chunks, eight of which are hashed at the same time."""
    total = hashlib.blake2b(digest_size=20)
    with ThreadPoolExecutor(8) as pool:
        while some := list(islice(chunks, 8)):
            for part in pool.map(hashlib.blake2b, some):
                total.update(part.digest())
    return total.hexdigest()


class Driver:
    """libcuda alone, through ctypes."""

    name = "libcuda"

    def __init__(self, size: int, managed: bool) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        context, device, self.pointer = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint64()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        if managed:
            self.call("cuMemAllocManaged", ctypes.byref(self.pointer), ctypes.c_size_t(size), 1)
        else:
            self.call("cuMemAlloc_v2", ctypes.byref(self.pointer), ctypes.c_size_t(size))

    def call(self, name: str, *arguments: Any) -> None:
        result = getattr(self.cuda, name)(*arguments)
        if result != 0:
            raise RuntimeError(f"{name}: CUresult {result}")

    def write(self, offset: int, data: bytes) -> None:
        at = ctypes.c_uint64(self.pointer.value + offset)
        self.call("cuMemcpyHtoD_v2", at, ctypes.c_char_p(data), ctypes.c_size_t(len(data)))

    def read(self, offset: int, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(self.pointer.value + offset), ctypes.c_size_t(size))
        return data.raw


class Torch:
    """PyTorch: one tensor of bytes."""

    name = "PyTorch"

    def __init__(self, size: int, managed: bool) -> None:
        import torch

        if managed:
            raise RuntimeError("managed memory needs the driver's own calls")
        self.torch = torch
        self.tensor = torch.empty(size, dtype=torch.uint8, device="cuda")

    def write(self, offset: int, data: bytes) -> None:
        host = self.torch.frombuffer(bytearray(data), dtype=self.torch.uint8)
        self.tensor[offset : offset + len(data)].copy_(host)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.tensor[offset : offset + size].cpu().numpy().tobytes())


class Memory:
    """GPU memory with a counter in front and the pattern behind it."""

    def __init__(self, size: int, seed: int, torch: bool, managed: bool) -> None:
        self.size, offset = size, COUNTER
        self.gpu: Driver | Torch = (Torch if torch else Driver)(size + COUNTER, managed)
        self.gpu.write(0, bytes(COUNTER))
        for chunk in pattern(size, seed):
            self.gpu.write(offset, chunk)
            offset += len(chunk)

    def tick(self) -> int:
        """One more on the GPU; what it is now."""
        now = int.from_bytes(self.gpu.read(0, COUNTER), "little") + 1
        self.gpu.write(0, now.to_bytes(COUNTER, "little"))
        return now

    def hash(self) -> str:
        """Of all that is on the GPU behind the counter."""
        starts = range(0, self.size, CHUNK)
        return digest(self.gpu.read(COUNTER + start, min(CHUNK, self.size - start)) for start in starts)


def watch(folder: str) -> Callable[[], list[list[int]]]:
    """Watch a file that we make in `folder`; the function returned touches it and tells what events came."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.path.join(folder, "watched")
    open(path, "w").close()
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    number = libc.inotify_add_watch(fd, path.encode(), 0x4)  # IN_ATTRIB
    if fd < 0 or number < 0:
        raise OSError(ctypes.get_errno(), "inotify")

    def touched() -> list[list[int]]:
        os.utime(path)
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return []
        words = memoryview(data).cast("I")
        return [[int(words[at]), int(words[at + 1])] for at in range(0, len(words), 4)]

    return touched


def put(path: str, value: dict[str, Any]) -> None:
    with open(path + ".new", "w") as file:
        json.dump(value, file)
    os.rename(path + ".new", path)


def taken(path: str) -> str:
    """The content of a file that is then removed; "" if there is none."""
    try:
        with open(path) as file:
            text = file.read()
        os.unlink(path)
        return text
    except OSError:
        return ""


def work(folder: str, number: int, size: int, flags: set[str]) -> None:
    """One process: fill, then count and answer for ever."""
    memory = Memory(size, number, "--torch" in flags, "--managed" in flags)
    touched = watch("/tmp") if "--watch" in flags else list
    first = memory.hash()
    if first != digest(pattern(size, number)):
        raise RuntimeError("GPU memory does not hold what was written to it")
    if "--fork" in flags and os.fork() == 0:
        while True:  # a child that has the GPU's descriptors and never uses them
            signal.pause()
    status = {"process": number, "pid": os.getpid(), "backend": memory.gpu.name, "bytes": size, "hash": first}
    while True:
        put(f"{folder}/status.{number}", {**status, "ticks": (ticks := memory.tick())})
        word = taken(f"{folder}/ask.{number}")
        if word:
            answer = {"word": word, "hash": memory.hash(), "ticks": ticks, "watches": touched()}
            put(f"{folder}/answer.{number}", answer)
        time.sleep(0.05)


def main(arguments: list[str]) -> None:
    folder, flags = arguments[0], set(arguments[1:])
    numbers = {name: int(value) for name, value in zip(arguments[1:], arguments[2:], strict=False) if value.isdigit()}
    size, processes = numbers["--bytes"], numbers.get("--processes", 1)
    held = b"\1" * numbers.get("--hold", 0)  # host memory beside the GPU's
    if processes == 1:
        work(folder, 0, size, flags)
    for number in range(processes):
        if os.fork() == 0:
            try:
                work(folder, number, size, flags)
            finally:
                os._exit(1)
    while len(held) >= 0:
        os.wait()  # a child that ends is a failure that the caller sees by its status going still


if __name__ == "__main__":
    main(sys.argv[1:])
