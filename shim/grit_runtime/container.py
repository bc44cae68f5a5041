"""One container as the next runtime knows it, and what we keep about it below /run/grit-runtime."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grit_runtime.checks import refuse
from grit_runtime.journal import RUN

DEFAULT_ROOT = "/run/runc"


def key(root: str, id: str) -> str:
    """A file name for the container `id` under the next runtime's state folder `root`; the entry makes the same one."""
    return f"{(root or DEFAULT_ROOT).replace('/', '_')}@{id.replace('/', '_')}"


def held_path(root: str, id: str) -> str:
    """The marker of a container that was restored on `create` and waits for its `start`."""
    return f"{RUN}/held/{key(root, id)}"


def hold(root: str, id: str, facts: dict[str, Any]) -> None:
    """Mark the container as held, with what `start` will need."""
    path = held_path(root, id)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path + ".new", "w") as file:
        json.dump(facts, file)
    os.rename(path + ".new", path)


def held(root: str, id: str) -> dict[str, Any] | None:
    """What `hold` wrote, or None."""
    try:
        with open(held_path(root, id)) as file:
            facts: dict[str, Any] = json.load(file)
            return facts
    except FileNotFoundError:
        return None


def dumped_path(root: str, id: str) -> str:
    """The marker of a container that its low-level runtime has deleted with its dump, as crun does."""
    return f"{RUN}/dumped/{key(root, id)}"


def mark_dumped(root: str, id: str) -> None:
    """Its caller will delete it too, and must not hear that it isn't there."""
    path = dumped_path(root, id)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def was_dumped(root: str, id: str) -> bool:
    """Whether `mark_dumped` was called; the marker goes."""
    try:
        os.unlink(dumped_path(root, id))
        return True
    except FileNotFoundError:
        return False


def release(root: str, id: str) -> None:
    """The container isn't held any more."""
    try:
        os.unlink(held_path(root, id))
    except FileNotFoundError:
        pass


@contextmanager
def locked(root: str, id: str) -> Iterator[int]:
    """One operation at a time on a container; refuses `container-busy` at once when another has it.

    Yields the lock's descriptor: a guardian that holds it too keeps others away until it is done.
    """
    path = f"{RUN}/lock/{key(root, id)}"
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise refuse("container-busy", id=id) from None
            if not os.path.exists(path) or not os.path.samestat(os.fstat(fd), os.stat(path)):
                continue  # its last holder removed it between our two calls
            try:
                yield fd
            finally:
                os.unlink(path)
            return
        finally:
            os.close(fd)


def wait_unlocked(root: str, id: str, timeout: float = 60.0) -> None:
    """Wait until no operation holds the container's lock: neither one that runs nor the guardian of one that died.

    After `timeout` seconds it is no longer waited for.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            fd = os.open(f"{RUN}/lock/{key(root, id)}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.01)
        finally:
            os.close(fd)
