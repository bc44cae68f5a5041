"""A small container for test_watches.py: `unshare -m -p -f python3 watches_child.py WORK split|same`.

Its root is an overlay (split: over two file systems), with a tmpfs, a bind mount, proc and sys. It evaluates each line
of its stdin, answers with one line of JSON, and ends when stdin does.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
MNT_DETACH = 2
ALL, ONESHOT, EXCL_UNLINK, DONT_FOLLOW = 0xFFF, 0x80000000, 0x04000000, 0x02000000
MODIFY, CREATE, ATTRIB = 0x2, 0x100, 0x4


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def write(path: str, text: str = "x") -> None:
    with open(path, "w") as file:
        file.write(text)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=60, stdin=subprocess.DEVNULL)


def enter(work: str, split: bool) -> None:
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "none", work)
    for name in ("lower", "upper", "root", "bound"):
        os.makedirs(f"{work}/{name}")
    if split:
        mount("-t", "tmpfs", "none", f"{work}/lower")
    for folder in ("low/deep/er", "up", "t", "bind", "proc", "sys", "old", "jail/in", "etc"):
        os.makedirs(f"{work}/lower/{folder}")
    for name in ("low/file", "low/deep/er/file", "low/copied", "low/once", "low/gone", "low/ignored", "jail/in/file"):
        write(f"{work}/lower/{name}")
    os.symlink("/low/file", f"{work}/lower/low/link")
    os.symlink("/low", f"{work}/lower/link")
    os.symlink(work, f"{work}/lower/escape")  # on the host it leads to other files than here
    for name in ("file", "gone"):
        write(f"{work}/bound/{name}")
    os.makedirs(f"{work}/upper/data")
    os.makedirs(f"{work}/upper/work")
    options = f"lowerdir={work}/lower,upperdir={work}/upper/data,workdir={work}/upper/work"
    mount("-t", "overlay", "overlay", "-o", options, f"{work}/root")
    mount("-t", "tmpfs", "none", f"{work}/root/t")
    mount("--bind", f"{work}/bound", f"{work}/root/bind")
    mount("-t", "proc", "proc", f"{work}/root/proc")
    mount("--rbind", "/sys", f"{work}/root/sys")
    os.chdir(f"{work}/root")
    check(libc.syscall(PIVOT_ROOT, b".", b"."))
    check(libc.umount2(b".", MNT_DETACH))
    os.chdir("/")
    write("/t/file")
    write("/t/gone")
    os.makedirs("/t/cfg/..2026_01_02_03_04_05.1")
    write("/t/cfg/..2026_01_02_03_04_05.1/key")
    os.symlink("..2026_01_02_03_04_05.1", "/t/cfg/..data")
    write("/low/copied", "copied up")


class Child:
    def __init__(self) -> None:
        self.inotify: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self.timers: dict[str, int] = {}
        self.kept: list[object] = []

    def new(self, name: str) -> int:
        self.inotify[name] = check(libc.inotify_init1(os.O_NONBLOCK))
        return self.inotify[name]

    def watch(self, name: str, path: str, mask: int = ALL) -> int:
        return int(check(libc.inotify_add_watch(self.inotify[name], path.encode(), ctypes.c_uint32(mask))))

    def unwatch(self, name: str, wd: int) -> None:
        check(libc.inotify_rm_watch(self.inotify[name], wd))

    def keep_deleted(self, *paths: str) -> None:
        for path in paths:
            self.kept.append(open(path))
            os.unlink(path)

    def group(self, name: str, flags: int, event_flags: int = 0) -> int:
        self.groups[name] = check(libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(event_flags)))
        return self.groups[name]

    def mark(self, name: str, flags: int, mask: int, path: str) -> None:
        check(libc.fanotify_mark(self.groups[name], ctypes.c_uint(flags), ctypes.c_uint64(mask), -100, path.encode()))

    def timer(self, name: str, value: float, interval: float, flags: int = 0, clock: int = 1) -> int:
        fd = self.timers[name] = check(libc.timerfd_create(clock, os.O_NONBLOCK))
        numbers = (int(interval), int(interval % 1 * 1e9), int(value), int(value % 1 * 1e9))
        check(libc.timerfd_settime(fd, flags, struct.pack("@4l", *numbers), None))
        return fd

    def ticks(self, name: str, wait: float = 0) -> int:
        fd = self.timers[name]
        select.select([fd], [], [], wait)
        try:
            return int(struct.unpack("=Q", os.read(fd, 8))[0])
        except BlockingIOError:
            return 0

    def fork(self, function: str = "pass") -> int:
        """A child that has the same open files (and dups of them), waits, and ends with us."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (*self.inotify.values(), *self.groups.values()):
                os.dup(fd)
            exec(function, {"os": os, "child": self, "libc": libc})
            os.close(reader)
            os.write(writer, b"x")
            while True:
                select.select([], [], [])
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        return pid

    def touch(self, path: str) -> None:
        with open(path, "a") as file:
            file.write("more")

    def events(self, name: str) -> list[list[int]]:
        """[[wd, mask], ...] that wait, in their order, without repeats."""
        found: list[list[int]] = []
        while True:
            try:
                block = os.read(self.inotify[name], 65536)
            except BlockingIOError:
                return found
            at = 0
            while at < len(block):
                wd, mask, _, length = struct.unpack_from("=iIII", block, at)
                if [wd, mask] not in found:
                    found.append([wd, mask])
                at += 16 + length

    def fan_events(self, name: str) -> list[int]:
        """The masks of the events that wait."""
        masks = []
        while select.select([self.groups[name]], [], [], 0)[0]:
            block = os.read(self.groups[name], 65536)
            at = 0
            while at < len(block):
                length, _, _, _, mask, fd, _ = struct.unpack_from("=IBBHQii", block, at)
                masks.append(mask)
                if fd >= 0:
                    os.close(fd)
                at += length
        return masks


def main() -> None:
    enter(sys.argv[1], sys.argv[2] == "split")
    child = Child()
    names = {"child": child, "os": os, "write": write, "struct": struct}
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer: object = {"value": eval(line, names)}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


main()
