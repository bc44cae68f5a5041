"""Transparent huge pages set to `always` for the time of an operation, and back when the last one ends.

They make the driver's copy to host memory 1.4 times faster or more (docs/gpu-results.md). The setting is the
node's, so operations that overlap are counted in a file under a lock, by PID and start time: one that died counts no
more.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import holders

SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"
STATE = "/run/grit-runtime/hugepages"


def chosen(text: str) -> str:
    """The word in brackets of `always [madvise] never`; "" if there is none. Pure."""
    return text.partition("[")[2].partition("]")[0]


def user(pid: int | None = None) -> dict[str, Any]:
    """Who holds: the process `pid` (ours), whose death ends the hold."""
    who = pid or os.getpid()
    return {"user": f"{who}:{holders.started(who)}"}


def hold(record: dict[str, Any] | None = None, *, setting: str = SETTING, state: str = STATE) -> bool:
    """Begin for `record` (default: us); its undo is `release`. False where the setting cannot be had (a kernel without
    it, a read-only /sys)."""
    with _users(state) as book:
        users = _living(book)
        now = chosen(_read(setting))
        if not now:
            return False
        if not users and (now != "always" or not book.get("before")):
            book["before"] = now  # else the last ones died, and what they found is still owed
        if now != "always" and not _write(setting, "always"):
            return False
        book["users"] = [*users, (record or user())["user"]]
    return True


def release(record: dict[str, Any], *, setting: str = SETTING, state: str = STATE) -> None:
    """End: with the last user the setting returns to what it was, unless somebody changed it meanwhile."""
    if not os.path.exists(state):
        return
    with _users(state) as book:
        users = _living(book)
        if record.get("user") in users:
            users.remove(record["user"])
        book["users"] = users
        before = book.get("before")
        if not users and before:
            if chosen(_read(setting)) == "always" and before != "always":
                _write(setting, before)
            book["before"] = ""


def owed(*, setting: str = SETTING, state: str = STATE) -> str:
    """What `sweep` would put back; "" if nothing."""
    if not os.path.exists(state):
        return ""
    with _users(state) as book:
        before = str(book.get("before") or "")
        return before if before != "always" and not _living(book) and chosen(_read(setting)) == "always" else ""


def sweep(*, setting: str = SETTING, state: str = STATE) -> None:
    """Put the setting back after operations that all died."""
    release({}, setting=setting, state=state)


def _living(book: dict[str, Any]) -> list[str]:
    users = []
    for user in book.get("users") or []:
        pid, _, ticks = str(user).partition(":")
        if pid.isdigit() and holders.started(int(pid)) and str(holders.started(int(pid))) == ticks:
            users.append(str(user))
    return users


@contextmanager
def _users(path: str) -> Iterator[dict[str, Any]]:
    """The counter file, locked; what the caller leaves in the dict is written back."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            book = json.loads(os.pread(descriptor, 1 << 20, 0) or b"{}")
        except ValueError:
            book = {}
        book = book if isinstance(book, dict) else {}
        yield book
        data = json.dumps(book).encode()
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, word: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(word)
        return True
    except OSError:
        return False
