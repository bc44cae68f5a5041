"""In the foreground: `restore` without --detach, and `run` of a spec that names a checkpoint.

The container is restored detached and becomes our child; we pass signals and the terminal on, exit with its code, and
delete it, as the runtime does when a person runs it at a shell.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from types import FrameType

from grit_runtime import argv, chain, container
from grit_runtime import spec as specs
from grit_runtime.argv import Call
from grit_runtime.checks import refuse
from grit_runtime.settings import Settings

FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip


def restore(call: Call, settings: Settings) -> int:
    """`restore` of a person at a shell."""
    from grit_runtime.commands import restore as detached

    return _foreground(call, settings, lambda wanted: detached.run(wanted, settings))


def run(call: Call, settings: Settings) -> int:
    """`run`: `create`, which restores, and `start`."""
    from grit_runtime.commands import create, start

    def begin(wanted: Call) -> int:
        words = wanted.rebuilt(subcommand="create", remove={"--detach", "--keep", "--no-subreaper"})
        code = create.run(argv.parse(words), settings)
        try:
            return code or start.run(argv.parse([*wanted.options, "start", wanted.id]), settings)
        except BaseException:
            _delete(chain.next_runtime(settings), wanted)
            raise

    if call.flag("--detach"):
        return begin(call)
    return _foreground(call, settings, begin)


def _foreground(call: Call, settings: Settings, begin: Callable[[Call], int]) -> int:
    import prctl

    runtime = chain.next_runtime(settings)
    prctl.set_child_subreaper(True)
    folder = tempfile.mkdtemp(prefix="grit-")
    try:
        with _Forwarding() as signals:
            return _live(call, runtime, folder, begin, signals)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _live(call: Call, runtime: str, folder: str, begin: Callable[[Call], int], signals: _Forwarding) -> int:
    """Have the container begin, and be with it to its end; its exit code."""
    pid_file = call.option("--pid-file") or folder + "/pid"
    wanted = argv.parse(call.rebuilt(remove={"--detach"}, add=["--detach"], replace={"--pid-file": pid_file}))
    terminal = None
    if _wants_terminal(call):
        from grit_runtime.terminal import Terminal

        terminal = Terminal(folder)
        wanted = argv.parse(wanted.rebuilt(replace={"--console-socket": terminal.path}))
    code = begin(wanted)
    if code:
        return code
    with open(pid_file) as file:
        pid = int(file.read())
    try:
        if terminal:
            terminal.serve()
        signals.to(pid)
        return _wait(pid)
    finally:
        if terminal:
            terminal.close()
        if not call.flag("--keep"):
            _delete(runtime, call)


def _delete(runtime: str, call: Call) -> None:
    container.release(call.root or "", call.id)
    subprocess.run([runtime, *call.options, "delete", "--force", call.id], check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def _wants_terminal(call: Call) -> bool:
    spec = specs.read(os.path.abspath(call.option("--bundle") or "."))
    wants = bool((spec.get("process") or {}).get("terminal")) and not call.option("--console-socket")
    if wants and not os.isatty(0):
        raise refuse("terminal-needs-console", id=call.id)
    return wants


class _Forwarding:
    """Signals that we get go to the container; those that come before there is one wait for it, as under runc."""

    def __init__(self) -> None:
        self._pid = 0
        self._early: list[int] = []

    def __enter__(self) -> _Forwarding:
        self._before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, pid: int) -> None:
        """The container is there: `pid`, our child, gets what came before."""
        self._pid = pid
        for number in self._early:
            self._forward(number, None)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if not self._pid:
            self._early.append(number)
            return
        try:
            os.kill(self._pid, number)
        except ProcessLookupError:
            pass


def _wait(pid: int) -> int:
    """The exit code of our adopted child `pid`, 128 + N for signal N."""
    while True:
        try:
            one, status = os.waitpid(-1, 0)
        except ChildProcessError:
            raise refuse("container-lost", pid=pid) from None
        if one == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
