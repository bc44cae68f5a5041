"""A call that needs work, handed on by the entry (shim/grit-runtime): which subcommand, which module of commands/."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from grit_runtime import argv, chain, report, settings
from grit_runtime.checks import Refusal, refuse

OURS = frozenset({"create", "run", "start", "state", "kill", "checkpoint", "restore", "pause", "resume", "delete"})
RUN = "/run/grit-runtime"
LOGS = "/var/lib/grit-runtime/logs"


def main(words: list[str]) -> int:
    """Carry out the call `words` (sys.argv without the program's name); the exit code. May become the next runtime."""
    call = argv.parse(words)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        return _carry_out(call)
    except Refusal as refusal:
        report.error(call, str(refusal))
    except Stopped as stopped:
        report.error(call, str(refuse("interrupted", signal=signal.Signals(stopped.number).name)))
        return 128 + stopped.number
    except Exception as error:
        log = report.traceback_file(error, LOGS)
        try:
            report.error(call, str(refuse("internal-error", error=f"{type(error).__name__}: {error}", log=log)))
        except Exception:  # the mistake is in the table of reasons itself
            report.error(call, f"grit-runtime: internal-error: {type(error).__name__} (traceback: {log})")
    return 1


def leave(words: list[str]) -> NoReturn:
    """End with `main`'s code, without taking the interpreter apart: a paused container waits for our end."""
    code = main(words)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # None where the descriptor was closed
            pass
    os._exit(code)


class Stopped(BaseException):
    """We are asked to end: what stands in a finally or an except is done as this passes it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def remember(name: str, content: bytes) -> None:
    """Keep `content` as the file `name` for the calls that follow. A failure costs them time, and nothing else."""
    folder = os.environ.get("GRIT_RUNTIME_RUN") or RUN
    path = f"{folder}/{name}"
    scratch = f"{path}.{os.getpid()}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
        os.rename(scratch, path)
    except OSError:
        pass


def remembered(name: str) -> bytes:
    """What `remember` has kept; nothing where there is no such file."""
    try:
        with open(f"{os.environ.get('GRIT_RUNTIME_RUN') or RUN}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def configuration(content: str, path: str) -> dict[str, Any]:
    """The tables of the configuration's text. To read TOML takes longer than most of what we do before CRIU starts, so
    what came of a text is kept with it."""
    import json

    try:
        kept: list[Any] = json.loads(remembered("configuration") or "[]")
    except ValueError:
        kept = []
    if len(kept) == 2 and kept[0] == content and isinstance(kept[1], dict):
        return kept[1]
    tree = settings.parse(content, path)
    try:
        remember("configuration", json.dumps([content, tree]).encode())
    except TypeError:
        pass  # TOML has dates, which JSON hasn't; no key of ours takes one
    return tree


def tell_entry(content: str, runtime: str) -> None:
    """Note the next runtime for the entry: its path, then the configuration's text that says so, for as long as that
    is what the file holds."""
    note = os.fsencode(runtime) + b"\n" + content.encode()
    if os.path.isabs(runtime) and "\n" not in runtime and remembered("next") != note:
        remember("next", note)


def _carry_out(call: argv.Call) -> int:
    config = settings.config_path()
    content = settings.text(config)
    known = settings.check(configuration(content, config), config)
    runtime = chain.next_runtime(known)
    tell_entry(content, runtime)
    if call.subcommand not in OURS or not call.id:  # without an ID it is a call for help, or the next one's to refuse
        chain.execute(runtime, call.rebuilt())

    from importlib import import_module

    code: int = import_module(f"grit_runtime.commands.{call.subcommand}").run(call, known)
    return code


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
