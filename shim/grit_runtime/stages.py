"""Runs the next runtime's checkpoint or restore, and answers CRIU's action script at each stage, in this process.

The script (hooks/criu-action) writes `STAGE INIT-PID CRIU-PID` into one FIFO and waits on another for its exit code, so
that nothing has to be started while the tasks are frozen. CRIU runs it at the stages that criu(8) lists under
--action-script. It may run twice for one stage (CRIU 4.1.1 does); handlers bear that.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from grit_runtime import chain
from grit_runtime.checks import Refusal, refuse
from grit_runtime.journal import Journal

SCRIPT = "/usr/libexec/grit-runtime/criu-action"
# A non-zero exit of the script makes CRIU give up at these stages; at later ones it is only logged.
CAN_FAIL = frozenset({"pre-dump", "network-lock", "post-dump", "pre-restore", "setup-namespaces",
                      "post-setup-namespaces", "post-restore"})  # fmt: skip


TICK = 1.0  # seconds
DEAD_TICKS = 4  # so many ticks without any news a runtime may take to notice that its CRIU has ended


class Ended(NamedTuple):
    """How the next runtime ended: exit code (negative: by that signal), stderr if it was kept, a handler's error, and
    when each stage with a handler was reached."""

    code: int
    stderr: str
    error: Exception | None
    stages: dict[str, float]


Handler = Callable[[int], None]


def run(
    argv: Sequence[str],
    journal: Journal,
    handlers: Mapping[str, Handler],
    *,
    environment: Mapping[str, str],
    keep_stderr: bool,
    timeout: float,
    meanwhile: Callable[[], None] | None = None,
) -> Ended:
    """Run `argv` to its end. `handlers` are called with the PID of the container's init at their stage (0: none yet).
    `meanwhile` is called when it has been started.

    A handler's exception fails its stage (where CRIU lets it) and is returned as `error`. With `keep_stderr` what the
    runtime writes there is kept; without it the descriptor is inherited, as a restored container's has to be.

    Refuses `runtime-timeout` after `timeout` seconds, when the runtime and CRIU have been ended.
    """
    folder = journal.folder + "/stages"
    os.makedirs(folder, exist_ok=True)
    for name in ("ask", "answer"):
        if not os.path.exists(f"{folder}/{name}"):
            os.mkfifo(f"{folder}/{name}", 0o600)
    # Both ends of both: the script never finds a FIFO without its other side, and we never see an end of file.
    ask = os.open(folder + "/ask", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    answer = os.open(folder + "/answer", os.O_RDWR | os.O_CLOEXEC)
    step = journal.add("end-runtime", stages=folder, gently=keep_stderr)
    errors, theirs = os.pipe() if keep_stderr else (-1, -1)
    try:
        wanted = {"GRIT_STAGES": folder, "GRIT_WANTED": " ".join(handlers)}
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 2)] if keep_stderr else []
        child = chain.spawn(argv, {**environment, **wanted}, actions)
        if keep_stderr:
            os.close(theirs)
            theirs = -1
        if meanwhile:
            meanwhile()
        ended = _serve(child, errors, ask, answer, handlers, time.monotonic() + timeout)
        if ended is None:
            journal.undo(step)
            os.waitpid(child, 0)
            raise refuse("runtime-timeout", command=os.path.basename(argv[0]), seconds=round(timeout))
    finally:
        for fd in (ask, answer, errors, theirs):
            if fd >= 0:
                os.close(fd)
    journal.forget(step)
    return ended


def no_plugins(journal: Journal) -> str:
    """An empty folder for CRIU's `libdir`, so that its CUDA plugin doesn't do a second time what we do."""
    folder = journal.folder + "/plugins"
    os.makedirs(folder, exist_ok=True)
    return folder


def _serve(child: int, errors: int, ask: int, answer: int, handlers: Mapping[str, Handler], end: float) -> Ended | None:
    poll = select.poll()
    exited = os.pidfd_open(child)
    poll.register(exited, select.POLLIN)
    poll.register(ask, select.POLLIN)
    if errors >= 0:
        poll.register(errors, select.POLLIN)
    said = b""
    error: Exception | None = None
    seen: dict[str, float] = {}
    running = True
    dead = 0
    try:
        while running:
            left = end - time.monotonic()
            ready = dict(poll.poll(max(0.0, min(left, TICK)) * 1000))
            if not ready and left <= TICK:
                return None
            if not ready:
                dead = dead + 1 if _criu_is_dead(child) else 0
                if dead == DEAD_TICKS:
                    # What CRIU left behind holds the runtime's socket to it open: it would wait for ever.
                    os.kill(child, signal.SIGKILL)
            if errors in ready:
                part = os.read(errors, 65536)
                said += part
                if not part:
                    poll.unregister(errors)
            if ask in ready:
                for line in os.read(ask, 4096).decode().splitlines():
                    stage, pid = line.split()[:2]
                    seen.setdefault(stage, time.monotonic())
                    problem = _handle(handlers.get(stage), int(pid))
                    error = error or problem
                    os.write(answer, b"1\n" if problem and stage in CAN_FAIL else b"0\n")
            running = exited not in ready
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        while errors >= 0 and _waiting(errors):
            part = os.read(errors, 65536)
            if not part:
                break
            said += part
        return Ended(code, said.decode(errors="replace"), error, seen)
    finally:
        os.close(exited)


def _criu_is_dead(runtime: int) -> bool:
    """Whether the runtime has a CRIU that has ended, and has not asked how."""
    try:
        children: list[str] = []
        for task in os.listdir(f"/proc/{runtime}/task"):
            with open(f"/proc/{runtime}/task/{task}/children") as file:
                children += file.read().split()
        for child in children:
            with open(f"/proc/{child}/stat") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            if name.startswith("criu") and rest.split()[0] == "Z":
                return True
    except OSError:
        pass  # somebody ended while we looked
    return False


def _handle(handler: Handler | None, pid: int) -> Exception | None:
    if handler is None:
        return None
    try:
        handler(pid)
    except (Refusal, OSError, ValueError, KeyError, RuntimeError) as error:
        return error
    return None


def _waiting(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
