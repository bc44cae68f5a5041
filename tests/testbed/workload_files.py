"""Parts of the workload: memory, counter, files, locks, shared memory, processes. Each has check() -> flat dict."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import mmap
import os
import queue
import signal
import socket
import threading
import time

UPPER = "/data/upper"
LOWER = "/data/lower"


def sha256(data: object) -> str:
    return hashlib.sha256(data).hexdigest()  # type: ignore[arg-type]


def random_bytes(size: int) -> bytes:
    return b"".join(os.urandom(min(size - done, 1 << 24)) for done in range(0, size, 1 << 24))


class Child:
    """A child process (forked before there are threads) that answers over a socket pair, and shares memory."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            self.mine.close()
            self.live(theirs)
        theirs.close()
        self.asked = 0

    def live(self, talk: socket.socket) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        answered = 0
        while talk.recv(1):
            answered += 1
            self.shared[:8] = answered.to_bytes(8, "little")
            talk.sendall(f"{answered} {os.getpid()} {os.getppid()}\n".encode())
        os._exit(0)

    def check(self) -> dict[str, object]:
        self.asked += 1
        self.mine.settimeout(10)
        self.mine.sendall(b"?")
        said = self.mine.recv(100).decode().split()
        return {
            "child_alive": said == [str(self.asked), str(self.pid), str(os.getpid())],
            "child_shares_memory": int.from_bytes(self.shared[:8], "little") == self.asked,
        }


class Memory:
    """Random bytes whose sha256 was computed at the start."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.data = random_bytes(int(os.environ.get("GRIT_MEMORY") or 256) << 20)
        self.sha256 = sha256(self.data)

    def check(self) -> dict[str, object]:
        now = sha256(self.data)
        return {"memory_sha256": now, "memory_bytes": len(self.data), "memory_sha256_equal": now == self.sha256}


class Counter:
    """A thread that counts on every 10 ms and appends each number to a file: its lines must be 1, 2, 3 ... on."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.value = 0
        self.lock = threading.Lock()
        self.file = os.open(f"{UPPER}/counter", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        threading.Thread(target=self.count, daemon=True).start()

    def count(self) -> None:
        while True:
            with self.lock:
                self.value += 1
                os.write(self.file, b"%d\n" % self.value)
            time.sleep(0.01)

    def check(self) -> dict[str, object]:
        with self.lock:
            value = self.value
            with open(f"{UPPER}/counter", "rb") as file:
                lines = [int(line) for line in file]
        gap = sum(abs(after - before - 1) for before, after in zip([0, *lines], [*lines, value + 1], strict=True))
        end = time.monotonic() + 10
        while self.value == value and time.monotonic() < end:
            time.sleep(0.005)
        return {"counter": value, "counter_gap": gap, "counter_goes_on": self.value > value}


class Threads:
    """Threads that sleep until they are asked."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.asked = [queue.Queue[int]() for _ in range(3)]
        self.said = queue.Queue[tuple[int, int]]()
        for number, asked in enumerate(self.asked):
            threading.Thread(target=self.live, args=(number, asked), daemon=True).start()

    def live(self, number: int, asked: queue.Queue[int]) -> None:
        while True:
            self.said.put((number, asked.get() + 1))

    def check(self) -> dict[str, object]:
        for asked in self.asked:
            asked.put(41)
        said = {self.said.get(timeout=10) for _ in self.asked}
        return {"threads": len(said), "threads_alive": said == {(number, 42) for number in range(len(self.asked))}}


class Files:
    """The rw layer: a file of the image changed, one deleted, a folder replaced, files made; one open since."""

    def __init__(self, parts: dict[str, object]) -> None:
        with open(f"{LOWER}/changed", "a") as file:
            file.write("changed here\n")
        os.unlink(f"{LOWER}/deleted")
        for name in os.listdir("/data/replaced"):
            os.unlink(f"/data/replaced/{name}")
        os.rmdir("/data/replaced")
        os.mkdir("/data/replaced")
        self.content = random_bytes(1 << 20)
        for path in (f"{UPPER}/made", "/data/replaced/made"):
            with open(path, "wb") as file:
                file.write(self.content)
        os.symlink("made", f"{UPPER}/symlink")
        os.link(f"{UPPER}/made", f"{UPPER}/hardlink")
        self.open = open(f"{UPPER}/made", "rb")
        self.open.seek(4096)

    def check(self) -> dict[str, object]:
        with open(f"{LOWER}/changed") as file:
            changed = file.read()
        made = []
        for path in (f"{UPPER}/made", "/data/replaced/made", f"{UPPER}/symlink", f"{UPPER}/hardlink"):
            with open(path, "rb") as file:
                made.append(file.read() == self.content)
        return {
            "files_changed": changed == "changed in the image\nchanged here\n",
            "files_deleted": not os.path.exists(f"{LOWER}/deleted"),
            "files_replaced": os.listdir("/data/replaced") == ["made"],
            "files_made": all(made),
            "files_hard_link": os.stat(f"{UPPER}/made").st_ino == os.stat(f"{UPPER}/hardlink").st_ino,
            "files_offset": self.open.tell() == 4096 and os.pread(self.open.fileno(), 16, 0) == self.content[:16],
        }


class Flock:
    def __init__(self, parts: dict[str, object]) -> None:
        self.file = open(f"{UPPER}/locked", "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def check(self) -> dict[str, object]:
        with open(f"{UPPER}/locked") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return {"flock_held": True}
        return {"flock_held": False}


class Ghost:
    """A file of 8 MiB, deleted and still open."""

    def __init__(self, parts: dict[str, object]) -> None:
        data = random_bytes(8 << 20)
        self.sha256 = sha256(data)
        self.file = open(f"{UPPER}/ghost", "w+b", buffering=0)
        self.file.write(data)
        os.unlink(f"{UPPER}/ghost")

    def check(self) -> dict[str, object]:
        data = os.pread(self.file.fileno(), 16 << 20, 0)
        return {
            "deleted_file_equal": sha256(data) == self.sha256,
            "deleted_file_still_deleted": not os.path.exists(f"{UPPER}/ghost"),
        }


class Shm:
    """A POSIX shared memory segment, unlinked after it was mapped, as PyTorch's DataLoader makes them.

    It is smaller than the 1 MiB that CRIU takes along of a deleted file by itself: Ghost is larger."""

    SIZE = 512 << 10

    def __init__(self, parts: dict[str, object]) -> None:
        path = f"/dev/shm/torch_{os.getpid()}_{os.urandom(4).hex()}"
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self.file, self.SIZE)
        self.map = mmap.mmap(self.file, self.SIZE)
        self.map[:] = random_bytes(self.SIZE)
        self.sha256 = sha256(self.map)
        os.unlink(path)

    def check(self) -> dict[str, object]:
        return {
            "shm_equal": sha256(self.map) == self.sha256,
            "shm_same_file": os.pread(self.file, 4096, 0) == self.map[:4096],
        }


class MemFd:
    def __init__(self, parts: dict[str, object]) -> None:
        self.file = os.memfd_create("workload")
        os.write(self.file, random_bytes(1 << 20))
        self.sha256 = sha256(os.pread(self.file, 1 << 20, 0))

    def check(self) -> dict[str, object]:
        return {"memfd_equal": sha256(os.pread(self.file, 2 << 20, 0)) == self.sha256}


class Driver:
    """Holds a file of the (fake) driver open and mapped, where the container has one."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.paths = sorted(glob.glob("/usr/lib/x86_64-linux-gnu/libcuda.so.*.*"))
        self.maps = []
        for path in self.paths:
            with open(path, "rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))

    def check(self) -> dict[str, object]:
        equal = []
        for path, held in zip(self.paths, self.maps, strict=True):
            with open(path, "rb") as file:
                equal.append(file.read() == held[:])
        return {"driver_files": len(equal), "driver_mapped": all(equal)}


FILES = {
    "child": Child, "memory": Memory, "counter": Counter, "threads": Threads, "files": Files, "flock": Flock,
    "ghost": Ghost, "shm": Shm, "memfd": MemFd, "driver": Driver,
}  # fmt: skip
