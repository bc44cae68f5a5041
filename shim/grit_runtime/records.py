"""What stays of an operation: CRIU's logs and one structured record for gritctl, counters for the node exporter.

A record is a dict that JSON can hold. These fields are read here and by `gritctl logs`; the first two must be there:

    operation   "dump" or "restore" (checkpoint is written as dump, after the log file's name)
    result      "ok", "failed" or "refused"
    reason      stable name from the table of reasons, "" if there is none
    message     one line for people
    container   the container's id; `pod` and `name` where they are known
    started     seconds since the epoch, UTC
    seconds     the whole operation
    phases      {"suspend": 1.2, "criu": 0.4, ...}, seconds, in the order in which they ran
    bytes       {"images": 123, "gpu": 456, ...}

Nothing here may decide the fate of an operation: what can't be kept is left out, and no error leaves this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from grit_runtime.settings import Settings

STATE = "/var/lib/grit-runtime"
# One log gets at most this part of logs.max_size, so that a single long one doesn't push out all others.
PART = 4
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HALF = ".half"  # an operation's folder that is being written, or whose writer died


class Kept(NamedTuple):
    """An operation that was kept: `folder` holds record.json and the logs; `when` is 20261125T184501.123456Z."""

    container: str
    when: str
    operation: str
    folder: str

    def record(self) -> dict[str, Any]:
        """The record; {} if it can't be read."""
        try:
            with open(os.path.join(self.folder, "record.json"), encoding="utf-8") as file:
                value = json.load(file)
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def logs(self) -> list[str]:
        """Paths of the logs."""
        names = (n for n in sorted(os.listdir(self.folder)) if n != "record.json")
        return [os.path.join(self.folder, n) for n in names]


def safe_name(name: str) -> str:
    """`name` as one name in a folder: what isn't plain becomes %XX, and a long one ends in a digest of itself."""
    data = name.encode("utf-8", "surrogateescape")
    plain = re.sub(rb"[^A-Za-z0-9_+.-]|^\.|^$", lambda m: b"%%%02X" % m[0][0] if m[0] else b"%", data).decode()
    if len(plain) <= 200:
        return plain
    import hashlib

    return f"{plain[:160]}%{hashlib.sha256(data).hexdigest()[:32]}"


def keep(
    container_id: str, operation: str, record: dict[str, Any], logs: list[str], settings: Settings, state: str = STATE
) -> str | None:
    """Keep the log files `logs` and `record` in <state>/logs/<container>/<time>-<dump|restore>; the folder's path.

    Of a log longer than a quarter of logs.max_size its end is kept. Only the newest logs.keep operations of the
    container stay, and of all containers the newest that together take no more than logs.max_size.
    None if nothing could be kept.
    """
    if settings.logs.keep < 1:
        return None
    kind = "restore" if operation == "restore" else "dump"
    try:
        with _locked(os.path.join(state, "logs")) as top:
            container = safe_name(container_id)
            _make(top, container)
            with _folder(top, container) as home:
                name = _write(home, kind, record, logs, settings.logs.max_size // PART)
            _prune_container(top, container, settings.logs.keep)
            _prune_all(top, settings.logs.max_size)
    except (OSError, ValueError, TypeError):
        return None
    return os.path.join(state, "logs", container, name)


def listing(container_id: str = "", state: str = STATE) -> list[Kept]:
    """What is kept, newest first; of containers whose id begins with `container_id`."""
    top = os.path.join(state, "logs")
    found = []
    prefix = safe_name(container_id) if container_id else ""
    for container in _names(top):
        if container.startswith(prefix) and not container.startswith("."):
            for name in _names(os.path.join(top, container)):
                when, _, operation = name.partition("-")
                if operation and not name.startswith("."):
                    found.append(Kept(container, when, operation, os.path.join(top, container, name)))
    return sorted(found, key=lambda kept: kept.when, reverse=True)


def metrics(settings: Settings, record: dict[str, Any], state: str = STATE) -> None:
    """Count `record` and write grit-runtime.prom for the node exporter's textfile collector into logs.metrics."""
    if not settings.logs.metrics:
        return
    try:
        with _locked(state) as top:
            counters = count(_counters(top), record)
            _replace(top, "metrics.json", json.dumps(counters), 0o600)
            target = os.open(settings.logs.metrics, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _replace(target, "grit-runtime.prom", prometheus(counters), 0o644)
            finally:
                os.close(target)
    except (OSError, ValueError, TypeError):
        return


def count(counters: dict[str, dict[str, float]], record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`counters` (metric -> labels as they are printed -> value) with `record` added."""
    new = {metric: dict(series) for metric, series in counters.items()}

    def add(metric: str, amount: float, **labels: object) -> None:
        series = new.setdefault(metric, {})
        key = ",".join(f'{name}="{_label(value)}"' for name, value in labels.items())
        series[key] = series.get(key, 0) + amount

    operation = "restore" if record.get("operation") == "restore" else "dump"
    result = record.get("result", "")
    add("operations_total", 1, operation=operation, result=result, reason=record.get("reason") or "")
    for phase, seconds in dict(record.get("phases") or {}).items():
        add("phase_seconds_sum", float(seconds), operation=operation, phase=phase)
        add("phase_seconds_count", 1, operation=operation, phase=phase)
    for kind, amount in dict(record.get("bytes") or {}).items():
        add("bytes_total", int(amount), operation=operation, kind=kind)
    last = f'operation="{operation}",result="{_label(result)}"'
    new.setdefault("last_operation_timestamp_seconds", {})[last] = float(record.get("started") or time.time())
    return new


def prometheus(counters: dict[str, dict[str, float]]) -> str:
    """The text format of prometheus.io/docs/instrumenting/exposition_formats."""
    lines = []
    for family, kind, text, members in (
        ("operations_total", "counter", "Checkpoints (dump) and restores by result and reason.", ("",)),
        ("phase_seconds", "summary", "Duration of the phases of checkpoints and restores.", ("_sum", "_count")),
        ("bytes_total", "counter", "Bytes that checkpoints and restores have written or read, by kind.", ("",)),
        ("last_operation_timestamp_seconds", "gauge", "When the last operation of a kind began.", ("",)),
    ):
        if not any(counters.get(family + member) for member in members):
            continue
        lines += [f"# HELP grit_runtime_{family} {text}", f"# TYPE grit_runtime_{family} {kind}"]
        for member in members:
            series = sorted(counters.get(family + member, {}).items())
            lines += [f"grit_runtime_{family}{member}{{{labels}}} {value!r}" for labels, value in series]
    return "\n".join(lines) + "\n"


def _label(value: object) -> str:
    """Labels are names of ours. Anything else, such as what an image claims, is counted as one thing."""
    text = str(value)
    return text if re.fullmatch(r"[a-z0-9_.-]{0,64}", text) else "other"


def _counters(top: int) -> dict[str, dict[str, float]]:
    """What was counted up to now; nothing if the file is missing or broken."""
    try:
        with open(os.open("metrics.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top), "rb") as file:
            value = json.load(file)
        return {str(m): {str(k): float(v) for k, v in series.items()} for m, series in value.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    """A descriptor of the folder `path`, made if it is missing, with its lock held."""
    os.makedirs(path, 0o700, exist_ok=True)
    top = os.open(path, _FOLDER)
    try:
        fcntl.flock(top, fcntl.LOCK_EX)
        yield top
    finally:
        os.close(top)


def _make(at: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=at)


def _write(home: int, kind: str, record: dict[str, Any], logs: list[str], limit: int) -> str:
    """Write an operation's folder in `home` under another name, then rename it; the name."""
    now = time.time()
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z-{kind}"
    if _HALF in os.listdir(home):
        _remove(home, _HALF)
    _make(home, _HALF)
    with _folder(home, _HALF) as folder:
        for path in logs:
            with contextlib.suppress(OSError):
                _copy_end(path, folder, limit)
        _replace(folder, "record.json", json.dumps(record, indent=1, default=str) + "\n", 0o600)
    os.rename(_HALF, name, src_dir_fd=home, dst_dir_fd=home)
    return name


def _copy_end(path: str, folder: int, limit: int) -> None:
    """Copy the file `path` (no link, no pipe, no device) into `folder`; of a long one the last `limit` bytes."""
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            return
        target = os.open(safe_name(os.path.basename(path)), _NEW, 0o600, dir_fd=folder)
        try:
            left = min(found.st_size, limit)
            if left < found.st_size:
                os.write(target, f"[{found.st_size - left} bytes left out here]\n".encode())
                os.lseek(source, -left, os.SEEK_END)
            while left > 0 and (data := os.read(source, min(left, 1 << 20))):
                os.write(target, data)
                left -= len(data)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _replace(at: int, name: str, text: str, mode: int) -> None:
    """Write the file `name` in the folder `at` by rename; the temporary name has no suffix that a collector reads."""
    temporary = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=at)
    with open(os.open(temporary, _NEW, mode, dir_fd=at), "w", encoding="utf-8", errors="backslashreplace") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)


def _names(path: str | int) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _remove(at: int, name: str) -> None:
    """Remove the folder `name` and the files in it; there are no folders in those that we write."""
    with _folder(at, name) as folder:
        for file in os.listdir(folder):
            os.unlink(file, dir_fd=folder)
    os.rmdir(name, dir_fd=at)


@contextlib.contextmanager
def _folder(at: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _prune_container(top: int, container: str, newest: int) -> None:
    """Remove the operations of `container` past the newest."""
    with _folder(top, container) as home:
        for old in sorted(os.listdir(home), reverse=True)[newest:]:
            _remove(home, old)


def _prune_all(top: int, total: int) -> None:
    """Remove the oldest operations of all containers while all take more than `total` bytes; never the newest one."""
    sizes: dict[tuple[str, str], int] = {}
    for container in os.listdir(top):
        # what isn't ours, a file say, is none of our business
        with contextlib.suppress(OSError), _folder(top, container) as home:
            for name in os.listdir(home):
                with _folder(home, name) as folder:
                    sizes[name, container] = sum(os.stat(f, dir_fd=folder).st_size for f in os.listdir(folder))
    used = sum(sizes.values())
    for name, container in sorted(sizes)[:-1]:
        if used <= total:
            break
        with _folder(top, container) as home:
            _remove(home, name)
            empty = not os.listdir(home)
        if empty:
            os.rmdir(container, dir_fd=top)
        used -= sizes[name, container]
