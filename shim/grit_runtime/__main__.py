"""A call that needs work, handed on by the entry (shim/grit-runtime): which subcommand, which module of commands/."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

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


def remember(config: str, content: str, runtime: str) -> None:
    """Let the entry know the next runtime: its path, then the configuration's text that says so, for as long as that
    is what the file holds. Without this the entry asks us each time, so a failure costs only time.
    """
    if not os.path.isabs(runtime) or "\n" in runtime:
        return
    folder = os.environ.get("GRIT_RUNTIME_RUN") or RUN
    scratch = f"{folder}/next.{os.getpid()}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(os.fsencode(runtime) + b"\n" + content.encode())
        os.rename(scratch, f"{folder}/next")
    except OSError:
        pass


def _carry_out(call: argv.Call) -> int:
    config = settings.config_path()
    content = settings.text(config)
    known = settings.check(settings.parse(content, config), config)
    runtime = chain.next_runtime(known)
    remember(config, content, runtime)
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
