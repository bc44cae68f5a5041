"""Runs of the testbed: each has a folder, a lock that says whether it lives, and a guard that cleans up after it.

The guard is a process of its own that waits on a pipe. However the process that brought the testbed up ends, the pipe
closes, and the guard ends the nodes and removes what they left. If both were killed, the next `up` does it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from . import groups
from .places import CHECKOUT, NODES, PREFIX, RUNS


class Run:
    """A run that this process owns."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        self.folder = RUNS / self.tag
        with _registry():
            self.folder.mkdir()
            self._lock = _take(self.folder)
        assert self._lock
        reader, writer = os.pipe()
        self._writer: int | None = writer
        self._guard = subprocess.Popen(
            ["/usr/bin/python3", "-m", "tests.testbed", "guard", self.tag],
            cwd=CHECKOUT, stdin=reader, stdout=subprocess.DEVNULL, pass_fds=[self._lock.fileno()],
            start_new_session=True,
        )  # fmt: skip
        os.close(reader)

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    def group(self, node: str) -> str:
        return f"{PREFIX}{self.tag}-{node}"

    def end(self) -> None:
        """Ends the run; returns when nothing of it is left. RuntimeError if something is."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
            assert self._lock
            self._lock.close()
            if self._guard.wait(timeout=120):
                raise RuntimeError(f"the testbed's run {self.tag} left: {leaks(self.tag)}")


@contextlib.contextmanager
def _registry() -> Iterator[None]:
    """Held while runs are made, and while it is decided whether one lives."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(NODES / "runs.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _take(folder: Path) -> IO[str] | None:
    """The lock of a run, or None if somebody has it: then the run lives."""
    lock = open(folder / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def guard(tag: str) -> int:
    """The guard's whole life: waits for the end of its stdin, then cleans."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    return 1 if clean(tag) else 0


def clean(tag: str) -> list[str]:
    """Removes all that the run `tag` left; gives what could not be removed."""
    left = groups.remove(f"{PREFIX}{tag}-")
    shutil.rmtree(RUNS / tag, ignore_errors=True)
    return left + [f"folder {RUNS / tag}"] * (RUNS / tag).exists()


def tags() -> list[str]:
    """All runs of which a folder or a cgroup is there."""
    folders = {path.name for path in RUNS.glob("*")}
    return sorted(folders | {group.name[len(PREFIX) :].split("-")[0] for group in groups.groups(PREFIX)})


def alive(tag: str) -> bool:
    if not (RUNS / tag).is_dir():
        return False
    lock = _take(RUNS / tag)
    if lock is None:
        return True
    lock.close()
    return False


def clean_dead() -> list[str]:
    """Cleans up after all runs whose owner and guard are both gone; gives their tags."""
    with _registry():
        dead = [tag for tag in tags() if not alive(tag)]
        for tag in dead:
            clean(tag)
    return dead


def leaks(tag: str) -> list[str]:
    """What is left of a run: folders, cgroups, their processes, and mounts in this mount namespace."""
    top = groups.groups(f"{PREFIX}{tag}-")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [
        *(f"folder {path}" for path in [RUNS / tag] if path.exists()),
        *(f"cgroup {group}" for group in top),
        *(f"process {pid}" for pid in sorted(groups.members(top))),
        *(f"mount {mount}" for mount in mounts if mount.startswith(f"{RUNS / tag}/")),
    ]
