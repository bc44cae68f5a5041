"""Edits of configuration files made, recorded, and taken back.

Each edited file has a backup beside it and an entry in <root>/var/lib/grit-runtime/install.json, written before the
file is. As long as nobody else edits the file, taking back puts the backup there, byte for byte; else our own edits are
undone in what is there now.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from grit_runtime.checks import Refusal, refuse
from grit_runtime.ctl.containerd import Edit, File, undone

STATE = "/var/lib/grit-runtime/install.json"
BACKUP = ".before-grit-runtime"


def read(root: str, path: str) -> str | None:
    """The text of `path` below `root`, bytes that are no UTF-8 as surrogates; None if there is no such file."""
    try:
        with open(root + path, "rb") as file:
            return _text(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None


def diff(edit: Edit) -> list[str]:
    """A unified diff of `edit`."""
    before = (edit.before or "").splitlines()
    name = edit.path if edit.before is not None else "/dev/null"
    return list(difflib.unified_diff(before, edit.after.splitlines(), name, edit.path, lineterm=""))


def apply(root: str, edit: Edit, prove: Callable[[], None] | None = None) -> None:
    """Make `edit`, with its backup and its entry; if `prove` raises then, all is as it was before.

    Refuses file-changed if the file isn't what the edit starts from.
    """
    with _entries(root, make=True) as entries:
        if read(root, edit.path) != edit.before:
            raise refuse("file-changed", path=edit.path)
        old = entries.get(edit.path) if edit.before is not None else None
        entry: dict[str, Any] = {"existed": edit.before is not None, "undo": edit.undo, "edited": False, "folders": []}
        if old is not None:
            # if somebody has edited since the last time, the backup isn't all that has to come back
            edited = old["edited"] or old["sum"] != _sum(edit.before or "")
            entry = {**old, "undo": edit.undo + old["undo"], "edited": edited}
        elif edit.before is not None:
            _write(root + edit.path + BACKUP, edit.before, like=root + edit.path)
            entry["backup"] = _sum(edit.before)
        made = _make_folders(root, os.path.dirname(edit.path))
        entry = {**entry, "sum": _sum(edit.after), "folders": entry["folders"] + made}
        _save(root, {**entries, edit.path: entry})
        _write(root + edit.path, edit.after, like=root + edit.path)
        try:
            if prove:
                prove()
        except BaseException:
            if old is None:
                _take_back(root, edit.path, entry)
            else:
                _write(root + edit.path, edit.before or "", like=root + edit.path)
            _save(root, entries)
            raise


def installed(root: str) -> list[str]:
    """The files that we have edited."""
    with _entries(root) as entries:
        return sorted(entries)


def taking_back(root: str, path: str) -> tuple[str | None, str | None, Refusal | None]:
    """What `path` is and what it will be without our edit (None: no file), and what stands in the way of the backup."""
    with _entries(root) as entries:
        return _taking_back(root, path, entries[path])


def take_back(root: str, path: str) -> Refusal | None:
    """Undo our edit of `path`. Returns backup-missing if the backup was wanted and isn't good: our edit is gone, but
    the rest of the file is as it is. Refuses as `containerd.undone` does."""
    with _entries(root) as entries:
        problem = _take_back(root, path, entries.pop(path))
        _save(root, entries)
    return problem


def _take_back(root: str, path: str, entry: dict[str, Any]) -> Refusal | None:
    before, after, problem = _taking_back(root, path, entry)
    if after is None and before is not None:
        os.unlink(root + path)
    elif after is not None and after != before:
        _write(root + path, after, like=root + path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(root + path + BACKUP)
    for folder in reversed(entry["folders"]):
        with contextlib.suppress(OSError):
            os.rmdir(root + folder)
    return problem


def _taking_back(root: str, path: str, entry: dict[str, Any]) -> tuple[str | None, str | None, Refusal | None]:
    now = read(root, path)
    if now is None:
        return None, None, None
    problem = None
    if not entry["edited"] and entry["sum"] == _sum(now):
        if not entry["existed"]:
            return now, None, None
        backup = read(root, path + BACKUP)
        if backup is not None and _sum(backup) == entry["backup"]:
            return now, backup, None
        problem = refuse("backup-missing", path=path + BACKUP)
    return now, undone(File(path, now), entry["undo"]), problem


@contextlib.contextmanager
def _entries(root: str, make: bool = False) -> Iterator[dict[str, dict[str, Any]]]:
    """The entries by path, with the lock on them held; none, and no lock, if there is no folder and it isn't made."""
    folder = os.path.dirname(root + STATE)
    if make:
        os.makedirs(folder, 0o700, exist_ok=True)
    elif not os.path.isdir(folder):
        yield {}
        return
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield dict(json.loads(read(root, STATE) or '{"files": {}}')["files"])
    finally:
        os.close(lock)


def _save(root: str, entries: dict[str, dict[str, Any]]) -> None:
    if entries:
        _write(root + STATE, json.dumps({"version": 1, "files": entries}, indent=1) + "\n", like=None)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root + STATE)


def _make_folders(root: str, folder: str) -> list[str]:
    """Make `folder` and what it is in; those that were made, outermost first."""
    missing = []
    while not os.path.isdir(root + folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for name in reversed(missing):
        os.mkdir(root + name, 0o755)
    return missing[::-1]


def _write(path: str, text: str, like: str | None) -> None:
    """Write `path` (what a link there names) by rename; owner and mode as `like` has them, or root's with 0644."""
    path = os.path.realpath(path)
    owner, group, mode = os.geteuid(), os.getegid(), 0o644 if like else 0o600
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(like or path)
        owner, group, mode = found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)
    temporary = f"{path}.grit-{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fchown(file.fileno(), owner, group)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(folder)
    os.close(folder)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
