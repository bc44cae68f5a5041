"""Parts of the workload: inotify, fanotify, timerfd, epoll. The image's Python is 3.13, which has timerfd."""

from __future__ import annotations

import ctypes
import os
import re
import select
import struct
import time

IN_NONBLOCK = os.O_NONBLOCK
IN_MODIFY, IN_ATTRIB, IN_CREATE, IN_DELETE = 0x2, 0x4, 0x100, 0x200
FAN_NONBLOCK, FAN_CLOSE_WRITE, FAN_EVENT_ON_CHILD, FAN_MARK_ADD = 0x2, 0x8, 0x08000000, 0x1
AT_FDCWD = -100
TMPFS = "/run/workload-tmpfs"

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *words: object) -> int:
    result: int = getattr(libc, name)(*words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}{words}: {os.strerror(ctypes.get_errno())}")
    return result


def readable(descriptor: int, timeout: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout)[0])


def fdinfo(descriptor: int) -> str:
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        return file.read()


class Watches:
    """Six inotify watches in one instance; four of them can have events, those on /proc cannot."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.file = call("inotify_init1", IN_NONBLOCK)
        os.makedirs(TMPFS, exist_ok=True)
        os.makedirs("/data/upper/watched", exist_ok=True)
        for path in (f"{TMPFS}/watched", "/data/upper/watched/file"):
            open(path, "w").close()
        change = IN_MODIFY | IN_ATTRIB
        self.paths: dict[int, tuple[str, int]] = {}
        for path, mask in (
            ("/data/lower/watched", change),
            ("/data/upper/watched", IN_CREATE | IN_DELETE),
            ("/data/upper/watched/file", change),
            (f"{TMPFS}/watched", change),
            ("/proc", IN_CREATE | IN_DELETE),
            ("/proc/version", change),
        ):
            # the numbers are not 1, 2, 3: each watch takes the place of one that was there before
            call("inotify_rm_watch", self.file, call("inotify_add_watch", self.file, b"/tmp", change))
            self.paths[call("inotify_add_watch", self.file, path.encode(), mask)] = path, mask
        self.events()

    def events(self) -> list[tuple[int, int]]:
        """Watch numbers and masks of all events that are there."""
        found = []
        while readable(self.file, 0):
            data = os.read(self.file, 65536)
            while data:
                number, mask, _, length = struct.unpack_from("iIII", data)
                found.append((number, mask))
                data = data[16 + length :]
        return found

    def check(self) -> dict[str, object]:
        there = dict(re.findall(r"^inotify wd:([0-9a-f]+) .*\bmask:([0-9a-f]+)", fdinfo(self.file), re.MULTILINE))
        live = {int(number, 16): int(mask, 16) for number, mask in there.items()}
        same = [number for number, (_, mask) in self.paths.items() if live.get(number, 0) & 0xFFF == mask]
        before = self.events()
        delivering = [number for number, (path, _) in self.paths.items() if self.delivers(number, path)]
        able = [number for number, (path, _) in self.paths.items() if not path.startswith("/proc")]
        return {
            "watches": len(self.paths),
            "watches_same_number": len(same),
            "watches_delivering": len(delivering),
            "watches_ignored": sum(bool(mask & 0x8000) for _, mask in before),
            "watches_extra": len(live.keys() - self.paths.keys()),
            "watches_kept": len(same) == len(self.paths) == len(live),
            "watches_deliver": delivering == able,
        }

    def delivers(self, number: int, path: str) -> bool:
        if path.startswith("/proc"):
            return False
        if os.path.isdir(path):
            open(f"{path}/new", "w").close()
            os.unlink(f"{path}/new")
        else:
            os.utime(path)
        return readable(self.file, 5) and number in [event for event, _ in self.events()]


class Fanotify:
    """A fanotify mark on a folder of the overlay."""

    FOLDER = "/data/upper/marked"

    def __init__(self, parts: dict[str, object]) -> None:
        os.makedirs(self.FOLDER, exist_ok=True)
        self.file = call("fanotify_init", FAN_NONBLOCK, os.O_RDONLY)
        mask = ctypes.c_uint64(FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD)
        call("fanotify_mark", self.file, FAN_MARK_ADD, mask, AT_FDCWD, self.FOLDER.encode())

    def check(self) -> dict[str, object]:
        marks = len(re.findall(r"^fanotify ino:", fdinfo(self.file), re.MULTILINE))
        self.events()
        with open(f"{self.FOLDER}/new", "w") as file:
            file.write("x")
        delivered = readable(self.file, 5) and self.events() > 0
        os.unlink(f"{self.FOLDER}/new")
        return {"fanotify_marks": marks, "fanotify_kept": marks == 1, "fanotify_delivers": delivered}

    def events(self) -> int:
        count = 0
        while readable(self.file, 0):
            data = os.read(self.file, 4096)
            while data:
                length, _, _, _, _, descriptor, _ = struct.unpack_from("IBBHQii", data)
                if descriptor >= 0:
                    os.close(descriptor)
                data, count = data[length:], count + 1
        return count


class Timer:
    """A periodic timer that nobody reads: it has expired when the freeze comes. It must tick on."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.file = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK)  # type: ignore[attr-defined]
        os.timerfd_settime(self.file, initial=0.05, interval=0.05)  # type: ignore[attr-defined]
        readable(self.file, 5)

    def check(self) -> dict[str, object]:
        expired = readable(self.file, 5)
        if expired:
            os.read(self.file, 8)
        ticking = readable(self.file, 5)
        interval = os.timerfd_gettime(self.file)[1]  # type: ignore[attr-defined]
        return {"timer_expired": expired, "timer_ticking": ticking, "timer_interval_kept": abs(interval - 0.05) < 1e-6}


class Epoll:
    """An epoll set over the descriptors of the other parts."""

    def __init__(self, parts: dict[str, object]) -> None:
        self.set = select.epoll()
        watched = [getattr(parts.get(name), "file", None) for name in ("watches", "fanotify", "timer")]
        watched += [getattr(parts.get(name), "other", None) for name in ("tcp", "pair")]
        self.files = [file if isinstance(file, int) else file.fileno() for file in watched if file is not None]
        self.event = os.eventfd(1)
        for file in (*self.files, self.event):
            self.set.register(file, select.EPOLLIN)

    def check(self) -> dict[str, object]:
        there = {int(number) for number in re.findall(r"^tfd:\s+(\d+)", fdinfo(self.set.fileno()), re.MULTILINE)}
        ready = {file for file, _ in self.set.poll(5)}
        return {
            "epoll_members": len(there),
            "epoll_kept": there == {*self.files, self.event},
            "epoll_reports": self.event in ready,
        }


KERNEL = {"watches": Watches, "fanotify": Fanotify, "timer": Timer, "epoll": Epoll}
