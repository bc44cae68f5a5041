"""What has been done to a container and how each step is undone: on disk before the step is taken.

An operation has a folder in /run/grit-runtime/op. Its file `journal` holds one JSON object a line:
`{"step": N, "undo": NAME, "args": {...}}` before a step, `{"done": N}` when its undo is no longer wanted.

A **guardian**, a process of its own session, waits on a pipe; if we die in the middle, whatever killed us, it undoes
what is open, in reverse. `gritctl recover` does the same for an operation whose guardian died too (the machine went
down, say).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grit_runtime.process import started

RUN = "/run/grit-runtime"

# The undo of each kind of step: `module:function` in this package, called with the step's arguments. All of them may
# run twice, and on a container that is gone.
UNDO = {
    "thaw": "undo:thaw",
    "freeze": "undo:freeze",
    "reattach": "undo:reattach",
    "resume-gpu": "undo:resume_gpu",
    "return-gpu-memory": "undo:return_gpu_memory",
    "lower-limit": "undo:lower_limit",
    "huge-pages": "undo:huge_pages",
    "unmount": "undo:unmount",
    "remove": "undo:remove",
    "discard": "undo:discard",
    "end-runtime": "undo:end_runtime",
    "end-restore": "undo:end_restore",
    "rewrite": "undo:rewrite",
    "remove-shm": "undo:remove_shm",
    "remove-sysv": "undo:remove_sysv",
    "unlend": "undo:unlend",
    "unlock-network": "undo:unlock_network",
}


# What must not be undone while another step of the same operation could not be: a process that lacks GPU memory doesn't
# run without it, its limit leaves room for it, and the files that have it aren't deleted.
WAITS = dict.fromkeys(("thaw", "resume-gpu", "lower-limit", "discard"), "return-gpu-memory")


class Journal:
    """The open steps of one operation. `add` before a step, `forget` when its undo isn't wanted any more."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._fd = os.open(folder + "/journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._next = 0
        self.open: dict[int, str] = {}

    def add(self, undo: str, **args: Any) -> int:
        """Note a step that is about to be taken; returns its number."""
        if undo not in UNDO:
            raise KeyError(undo)
        self._next += 1
        self._line({"step": self._next, "undo": undo, "args": args})
        self.open[self._next] = undo
        return self._next

    def forget(self, step: int) -> None:
        """The step stays, or was undone: its undo must not run any more."""
        self._line({"done": step})
        self.open.pop(step, None)

    def undo(self, step: int) -> None:
        """Undo one step now. Errors are raised, and the step stays open for the guardian."""
        for number, name, args in open_steps(self.folder):
            if number == step:
                _call(name, args)
                self.forget(number)

    def close(self) -> None:
        os.close(self._fd)

    def _line(self, value: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(value).encode() + b"\n")


def open_steps(folder: str) -> list[tuple[int, str, dict[str, Any]]]:
    """The steps of the operation in `folder` that are still to be undone, newest first: (number, undo, arguments)."""
    steps: dict[int, tuple[str, dict[str, Any]]] = {}
    try:
        with open(folder + "/journal") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # we died while writing it, so that step was never taken
                value = json.loads(line)
                if "done" in value:
                    steps.pop(value["done"], None)
                else:
                    steps[value["step"]] = (value["undo"], value["args"])
    except FileNotFoundError:
        pass
    return [(number, *steps[number]) for number in sorted(steps, reverse=True)]


def undo_all(folder: str) -> list[str]:
    """Undo every open step of `folder` in reverse; returns what went wrong, one line each. Never stops half-way."""
    problems = []
    failed = set()
    for number, name, args in open_steps(folder):
        if WAITS.get(name) in failed:
            problems.append(f"{name}: not before {WAITS[name]}")
            continue
        try:
            _call(name, args)
        except Exception as error:
            problems.append(f"{name}: {error}")
            failed.add(name)
            continue
        with open(folder + "/journal", "a") as journal:
            journal.write(json.dumps({"done": number}) + "\n")
    return problems


def pending() -> list[str]:
    """Folders of operations whose process and guardian are both gone and that left steps open or files behind."""
    base = RUN + "/op"
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        return []
    return [f"{base}/{name}" for name in names if not _alive(f"{base}/{name}")]


def undo(folder: str) -> list[str]:
    """`gritctl recover`: undo what `folder` holds and remove it. Returns the problems; with any, the folder stays."""
    problems = undo_all(folder)
    if not problems:
        _remove(folder)
    return problems


@contextmanager
def operation(name: str, lock: int = -1) -> Iterator[Journal]:
    """A journal under a guardian. Whatever ends the block with an error, what is open is undone before it goes on.

    What is still open at the block's good end is undone too: a step that shall stay is `forget`-ed. The guardian holds
    the descriptor `lock` as long as it lives.
    """
    folder = f"{RUN}/op/{name}-{os.getpid()}"
    os.makedirs(RUN, mode=0o700, exist_ok=True)
    journal = Journal(folder)
    watch = _guard(folder, lock)
    problems: list[str] = []
    try:
        yield journal
    finally:
        # A signal that comes now must not end us between two undos; the guardian would, but twice is worse than once.
        problems = undo_all(folder)
        for problem in problems:
            print(f"grit-runtime: undo: {problem}", file=sys.stderr)
        journal.close()
        if problems:
            os.unlink(folder + "/owner")  # nobody works on it any more, once the guardian has tried too
        else:
            _remove(folder)
            os.write(watch[1], b"x")
        os.close(watch[1])
        os.waitpid(watch[0], 0)


def _remove(folder: str) -> None:
    import shutil  # not before the work is done

    shutil.rmtree(folder, ignore_errors=True)


def _guard(folder: str, lock: int) -> tuple[int, int]:
    """Start the guardian of `folder`: (its PID, our end of the pipe)."""
    read, write = os.pipe()
    owner = os.getpid()
    pid = os.fork()
    if pid:
        os.close(read)
        _note_owner(folder, pid)
        return pid, write
    try:
        os.close(write)
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        _name("grit-guardian")
        _close_others({read, lock})
        if os.read(read, 1) != b"x" and not undo_all(folder):
            _remove(folder)
        if lock >= 0 and os.getppid() != owner:
            os.unlink(os.readlink(f"/proc/self/fd/{lock}"))  # as its holder would have
    finally:
        os._exit(0)


def _close_others(keep: set[int]) -> None:
    """The guardian must hold none of the caller's pipes open: containerd waits until they are closed."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass


def _note_owner(folder: str, guardian: int) -> None:
    with open(folder + "/owner", "w") as file:
        file.write(" ".join(f"{pid}:{started(pid)}" for pid in (os.getpid(), guardian)))


def _alive(folder: str) -> bool:
    try:
        with open(folder + "/owner") as file:
            owners = file.read().split()
    except OSError:
        # It has just been made, or its process failed to undo it all and gave it up.
        return os.path.exists(folder) and not os.path.exists(folder + "/journal")
    return any(started(int(pid)) == start for pid, _, start in (owner.partition(":") for owner in owners))


def _name(name: str) -> None:
    try:
        import prctl
    except ImportError:
        return
    prctl.set_name(name)


def _call(name: str, args: dict[str, Any]) -> None:
    from importlib import import_module

    module, _, function = UNDO[name].partition(":")
    getattr(import_module("grit_runtime." + module), function)(**args)
