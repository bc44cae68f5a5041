"""The `cuda-checkpoint` program as the other way, with the methods of `driver.Driver`. Used in the helper only.

It has `--toggle` since driver 550 and `--action` with `--get-state` since 555; `--device-map` needs 580.
"""

from __future__ import annotations

import subprocess

from . import holders, names


class Binary:
    """Each method runs the program once, which pays a cuInit. `actions` tells whether it knows `--action`."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path, self.timeout = path, timeout
        text = self.run("--help")[1]
        self.actions = "--action" in text
        self.maps = "--device-map" in text

    def run(self, *arguments: str) -> tuple[int, str]:
        """(CUresult, what it printed)."""
        try:
            done = subprocess.run(
                [self.path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired:
            return names.NO_ANSWER, ""
        except OSError as error:
            return names.OPERATING_SYSTEM, str(error)
        return (0 if done.returncode == 0 else result_of(done.stdout)), done.stdout

    def state(self, pid: int) -> tuple[int, int]:
        if not self.actions:  # toggle alone cannot ask; what a process holds tells its state
            return names.SUCCESS, names.RUNNING if holders.held_by(pid) else names.CHECKPOINTED
        result, text = self.run("--get-state", "--pid", str(pid))
        state = names.state_number(text) if result == 0 else None
        return (result, state) if state is not None else (result or names.UNKNOWN, -1)

    def lock(self, pid: int, timeout_ms: int) -> int:
        if not self.actions:
            return names.SUCCESS
        return self.run("--action", "lock", "--pid", str(pid), "--timeout", str(timeout_ms))[0]

    def checkpoint(self, pid: int) -> int:
        return self._act("checkpoint", pid)

    def restore(self, pid: int, pairs: list[tuple[str, str]]) -> int:
        moved = [f"{old}={new}" for old, new in pairs]
        if self.maps and any(old != new for old, new in pairs):
            return self.run("--action", "restore", "--pid", str(pid), "--device-map", ",".join(moved))[0]
        if any(old != new for old, new in pairs):
            return names.NOT_SUPPORTED
        return self._act("restore", pid)

    def unlock(self, pid: int) -> int:
        return self._act("unlock", pid) if self.actions else names.SUCCESS

    def _act(self, action: str, pid: int) -> int:
        if self.actions:
            return self.run("--action", action, "--pid", str(pid))[0]
        return self.run("--toggle", "--pid", str(pid))[0]


def result_of(text: str) -> int:
    """The CUresult behind the program's words; CUDA_ERROR_UNKNOWN when they are new to us."""
    return next((number for words, number in names.TEXTS.items() if words in text), names.UNKNOWN)
