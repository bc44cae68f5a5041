"""Errors, said as runc says them: to the file of --log in the format asked for, and to stderr.

containerd reads the last line of that file when `create` or `start` fails and shows its "msg"; of `checkpoint` it shows
what stderr holds.
"""

from __future__ import annotations

import os
import sys
import time

from grit_runtime.argv import Call


def error(call: Call, message: str) -> None:
    """Report `message` (one line) for `call`. Never fails: where it cannot write, it leaves out that place."""
    said = message.encode("utf-8", "backslashreplace") + b"\n"
    if call.log in (None, "", "/dev/stderr"):  # runc's default is stderr, and then it says it there once
        said = line(message, "json", time.time()) if call.log_format == "json" else said
    elif call.log:
        try:
            # What runc's main.go passes to os.OpenFile, and its mode.
            fd = os.open(call.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with open(fd, "wb") as file:
                file.write(line(message, call.log_format, time.time()))
        except (OSError, ValueError):
            pass
    try:
        os.write(2, said)
    except OSError:
        pass


def line(message: str, log_format: str, now: float) -> bytes:
    """One line of the log as logrus writes it for runc; `now` in seconds since the epoch."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if log_format == "json":
        import json

        return json.dumps({"level": "error", "msg": message, "time": when}, separators=(",", ":")).encode() + b"\n"
    quoted = "".join(_escaped(char) for char in message)
    return f'time="{when}" level=error msg="{quoted}"\n'.encode("utf-8", "backslashreplace")


def size(path: str | None) -> int:
    """How long the file of --log is now, in bytes; 0 where there is none."""
    try:
        return os.stat(path).st_size if path else 0
    except OSError:
        return 0


def last(path: str | None, start: int) -> str:
    """The last message that the next runtime has put into its log since that was `start` bytes long, "" if none."""
    import stat

    try:
        fd = os.open(path or "", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return ""
            file.seek(max(start, os.fstat(fd).st_size - (1 << 16)))
            lines = file.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return message(lines[-1]) if lines else ""


def message(line: str) -> str:
    """What a line of runc's or crun's log says: JSON, logrus's text, or just words. Always one line."""
    import json
    import re

    found = re.search(r'\bmsg=("(?:[^"\\]|\\.)*")', line)
    try:
        said = json.loads(found[1]) if found else json.loads(line)["msg"]
        return " ".join(str(said).split())
    except (ValueError, KeyError, TypeError):
        return " ".join(line.split())


def _escaped(char: str) -> str:
    """As Go's %q does it for what a message can hold."""
    if char in '"\\':
        return "\\" + char
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char, char if char.isprintable() else f"\\u{ord(char):04x}")


def traceback_file(error: BaseException, folder: str) -> str:
    """Keep the traceback of `error` in a file of `folder`, for the person who mends it; its path, "none" on failure."""
    import traceback

    path = os.path.join(folder, "internal-errors.log")
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {sys.argv[1:]}\n{text}\n")
    except OSError:
        return "none"
    return path
