"""Memory of other processes to files and back, by several threads (process_vm_readv(2), process_vm_writev(2))."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from grit_runtime.manifest import PIECE

from .regions import Region

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
THREADS = 16
FILES = 8  # of one process: a file system lets one thread write to a file at a time
SHARE = 64 << 20  # a file has at least so many bytes, where there are so many

LIBC = ctypes.CDLL(None, use_errno=True)
for _call in (LIBC.process_vm_readv, LIBC.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


class Iovec(ctypes.Structure):
    """struct iovec of <sys/uio.h>."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Job(NamedTuple):
    """Regions of one process, one after the other in the file `path`."""

    pid: int
    path: str
    regions: tuple[Region, ...]

    @property
    def size(self) -> int:
        return sum(region.size for region in self.regions)


def job(row: Mapping[str, Any]) -> Job:
    """A job from the JSON of its `_asdict`."""
    return Job(int(row["pid"]), row["path"], tuple(Region(*pair) for pair in row["regions"]))


class Part(NamedTuple):
    """A piece of a file and where its bytes lie in the process: (address, bytes) in the file's order."""

    job: Job
    offset: int
    places: tuple[tuple[int, int], ...]


def mark(folder: str, path: str) -> str:
    """The file that tells that what is in `path` was put back by the one that took it, or was never taken."""
    return f"{folder}/returned-{os.path.basename(path)}"


def shares(regions: Sequence[Region]) -> list[tuple[Region, ...]]:
    """The regions of one process cut up for FILES files, or less. Pure."""
    total = sum(region.size for region in regions)
    count = max(1, min(FILES, total // SHARE))
    each = -(-total // count // PIECE) * PIECE
    found: list[list[Region]] = [[]]
    have = 0
    for region in regions:
        start = region.start
        while start < region.end:
            if have == each:
                found.append([])
                have = 0
            size = min(each - have, region.end - start)
            found[-1].append(Region(start, size))
            start, have = start + size, have + size
    return [tuple(share) for share in found]


def parts(job: Job) -> list[Part]:
    """The file of `job` in pieces of PIECE bytes, the last one shorter. Pure."""
    found: list[Part] = []
    places: list[tuple[int, int]] = []
    have = 0
    for region in job.regions:
        at = region.start
        while at < region.end:
            count = min(PIECE - have, region.end - at)
            places.append((at, count))
            at, have = at + count, have + count
            if have == PIECE:
                found.append(Part(job, len(found) * PIECE, tuple(places)))
                places, have = [], 0
    if places:
        found.append(Part(job, len(found) * PIECE, tuple(places)))
    return found


def save(jobs: Iterable[Job]) -> dict[str, list[str]]:
    """Copy the regions into new files; {path: CRC-32 of each piece, as manifest.py has them}. OSError: no space, or
    the process is gone. The files are closed, so that a file system on a network has said what it had to say."""
    every = list(jobs)
    sums = {job.path: [""] * len(parts(job)) for job in every}
    files: dict[str, int] = {}

    def one(part: Part, buffer: memoryview) -> None:
        at = 0
        for address, count in part.places:
            transfer(LIBC.process_vm_readv, part.job.pid, address, buffer[at : at + count])
            at += count
        sums[part.job.path][part.offset // PIECE] = f"{zlib.crc32(buffer[:at]):08x}"
        done = 0
        while done < at:
            done += os.pwrite(files[part.job.path], buffer[done:at], part.offset + done)

    try:
        for job in every:
            files[job.path] = os.open(job.path, NEW, 0o600)
        _all(every, one)
    finally:
        for fd in files.values():
            os.close(fd)
    return sums


def put(jobs: Iterable[Job]) -> None:
    """Copy the files into the regions. OSError: a file is missing or too short, or the process is gone."""
    every = list(jobs)
    files: dict[str, int] = {}

    def one(part: Part, buffer: memoryview) -> None:
        offset = part.offset
        for address, count in part.places:
            view = buffer[:count]
            _read(files[part.job.path], view, offset, part.job.path)
            transfer(LIBC.process_vm_writev, part.job.pid, address, view)
            offset += count

    try:
        for job in every:
            files[job.path] = os.open(job.path, OLD)
        _all(every, one)
    finally:
        for fd in files.values():
            os.close(fd)


def _read(fd: int, view: memoryview, offset: int, path: str) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise OSError(f"{path} ends at {offset + done}")
        done += count


def transfer(call: Callable[..., int], pid: int, address: int, view: memoryview) -> None:
    """Between `view` and `address` of a process, all of it."""
    here = ctypes.addressof(ctypes.c_char.from_buffer(view))
    done = 0
    while done < len(view):
        local = Iovec(here + done, len(view) - done)
        remote = Iovec(address + done, len(view) - done)
        count = call(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if count <= 0:
            number = ctypes.get_errno()
            raise OSError(number, f"memory of process {pid} at {address + done:x}: {os.strerror(number)}")
        done += count


def _all(jobs: Iterable[Job], one: Callable[[Part, memoryview], None]) -> None:
    """`one` for each part of each job, in several threads, each with a buffer of its own. The first error ends all."""
    # by offset: neighbours in time are then in different files
    work = sorted((part for job in jobs for part in parts(job)), key=lambda part: part.offset)
    left = iter(work)
    errors: list[Exception] = []
    lock = threading.Lock()

    def some() -> None:
        buffer = memoryview(mmap.mmap(-1, PIECE))
        while not errors:
            with lock:
                part = next(left, None)
            if part is None:
                return
            try:
                one(part, buffer)
            except Exception as error:
                errors.append(error)

    count = min(THREADS, len(os.sched_getaffinity(0)), len(work))
    threads = [threading.Thread(target=some) for _ in range(count - 1)]
    started = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError:  # no more processes: the others do it
            break
        started.append(thread)
    some()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
