"""The next runtime in the chain: find it, become it, start it, ask it.

Normally nvidia-container-runtime, which calls runc or crun in turn; nothing here depends on which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from grit_runtime.argv import Call
from grit_runtime.checks import Refusal, refuse
from grit_runtime.settings import Settings

ASK_TIMEOUT = 60.0  # s, for questions that the next runtime answers in some milliseconds


class State(NamedTuple):
    """What `state` answers (OCI runtime specification, "State"). `pid` is 0 where there is no process."""

    id: str
    pid: int
    status: str
    bundle: str
    annotations: dict[str, str]


class Flavour(NamedTuple):
    """The low-level runtime at the chain's end: "runc", "crun" or "unknown", and its version, like (1, 3, 6)."""

    name: str
    version: tuple[int, ...]


def next_runtime(settings: Settings) -> str:
    """The next runtime's absolute path. Refuses `next-runtime-missing` and `next-runtime-is-us`."""
    wanted = settings.runtime.next
    if "/" in wanted:
        places = [wanted]
    else:
        places = [os.path.join(folder, wanted) for folder in os.get_exec_path() if os.path.isabs(folder)]
    for path in places:
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            if os.path.basename(os.path.realpath(path)) == "grit-runtime":
                raise refuse("next-runtime-is-us", path=path)
            return path
    raise refuse("next-runtime-missing", path=wanted)


def execute(runtime: str, argv: Sequence[str]) -> NoReturn:
    """Become `runtime` with the arguments `argv`; what Python did to the process at its start is undone first."""
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # pylifecycle.c ignores both at start
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if "LC_CTYPE" in os.environ and not _came_with("LC_CTYPE"):
        os.unsetenv("LC_CTYPE")  # PEP 538 sets it in the C locale
    try:
        os.execv(runtime, [runtime, *argv])
    except OSError as error:
        raise refuse("next-runtime-broken", path=runtime, error=error.strerror) from error


class Question:
    """A call that the next runtime answers on stdout while we go on: two cores do more than one.

    Refuses `next-runtime-broken`; `answer` refuses `next-runtime-silent`.
    """

    def __init__(self, runtime: str, argv: Sequence[str]) -> None:
        self.runtime, self.asked = runtime, argv[-1]
        self._out, self._err = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr"))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, self._out, 1),
            (os.POSIX_SPAWN_DUP2, self._err, 2),
        ]
        try:
            self._pid = spawn([runtime, *argv], os.environ, actions)
        except BaseException:
            self._close()
            raise

    def answer(self) -> tuple[int, str, str]:
        """Wait for it: (exit code, stdout, stderr). Once."""
        import select

        watch = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            silent = not poll.poll(ASK_TIMEOUT * 1000)
            if silent:
                os.kill(self._pid, 9)
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            if silent:
                raise refuse("next-runtime-silent", path=self.runtime, question=self.asked, seconds=int(ASK_TIMEOUT))
            texts = [os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace") for fd in (self._out, self._err)]
        finally:
            os.close(watch)
            self._close()
        return code, texts[0], texts[1]

    def _close(self) -> None:
        os.close(self._out)
        os.close(self._err)


def spawn(argv: Sequence[str], environment: Mapping[str, str], actions: Sequence[tuple[Any, ...]]) -> int:
    """Start the program `argv[0]`, an absolute path; its PID. It gets our inheritable descriptors, then `actions` (of
    os.posix_spawn). What Python changed for itself is as it was. Refuses `next-runtime-broken`. Where a checkpoint
    waits for it, subprocess would cost more than the start itself."""
    import signal

    ignored = [one for one in (signal.SIGPIPE, signal.SIGXFSZ) if signal.getsignal(one) == signal.SIG_IGN]
    try:
        return os.posix_spawn(argv[0], list(argv), environment, file_actions=actions, setsigdef=ignored)
    except OSError as error:
        raise refuse("next-runtime-broken", path=argv[0], error=error.strerror) from error


def state_question(runtime: str, call: Call) -> Question:
    """Ask for the state of the container that `call` names."""
    options = ["--root", call.root] if call.root is not None else []
    return Question(runtime, [*options, "state", call.id])


def ask_state(runtime: str, call: Call, question: Question | None = None) -> State:
    """The state of the container that `call` names. Refuses `container-unknown`, `next-runtime-answer`."""
    import json

    code, out, errors = (question or state_question(runtime, call)).answer()
    if code != 0:
        raise refuse("container-unknown", id=call.id, error=(errors.strip().splitlines() or ["no reason given"])[-1])
    try:
        said = json.loads(out)
        annotations = said.get("annotations") or {}
        return State(
            id=str(said["id"]),
            pid=int(said.get("pid") or 0),
            status=str(said["status"]),
            bundle=str(said["bundle"]),
            annotations={str(key): str(value) for key, value in annotations.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse("next-runtime-answer", path=runtime, question="state") from error


def flavour_question(runtime: str) -> Question:
    """Ask which low-level runtime is at the chain's end."""
    return Question(runtime, ["--version"])


def exists(runtime: str, call: Call) -> bool:
    """Whether the next runtime knows the container that `call` names."""
    try:
        ask_state(runtime, call)
    except Refusal as refusal:
        if refusal.reason != "container-unknown":
            raise
        return False
    return True


def flavour(runtime: str, question: Question | None = None) -> Flavour:
    """Which low-level runtime answers at the chain's end. nvidia-container-runtime hands `--version` on to it."""
    import re

    said = (question or flavour_question(runtime)).answer()[1]
    match = re.search(r"^(runc|crun) version ([0-9]+(?:\.[0-9]+)*)", said, re.MULTILINE)
    if match is None:
        return Flavour("unknown", ())
    return Flavour(match[1], tuple(int(part) for part in match[2].split(".")))


def _came_with(name: str) -> bool:
    """Whether our own caller gave us the environment variable `name`."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(entry.startswith(name.encode() + b"=") for entry in file.read().split(b"\0"))
    except OSError:
        return True
