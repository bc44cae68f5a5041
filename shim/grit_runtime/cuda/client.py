"""Our side of the helper process: start it, ask it many things at once, stop waiting in time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

from grit_runtime import checks

from . import names

# These would show the helper other GPUs than the node has.
HIDING = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY", "NVIDIA_VISIBLE_DEVICES")
# cuInit takes 0.2 to 2.7 s where it was measured, more on a node with many GPUs and no persistence mode.
OPENING = 60.0


class Answer(NamedTuple):
    """One call's result: `result` is a CUresult, `seconds` what it took, `state` a CUprocessState where asked."""

    result: int
    seconds: float = 0.0
    state: int = -1


class Gone(Exception):
    """The helper did not answer in time or has ended."""


class Helper:
    """The helper process. `facts` is what it found at opening: way, driver, cuda, machine, maps.

    A refusal while opening: cuda-missing, driver-too-old, cuda-init-failed, nvml-missing.
    """

    def __init__(self, way: str = "auto", binary: str = "cuda-checkpoint", timeout: float = 120.0) -> None:
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # pynvml is where this process would find it, whatever the interpreter's own idea of that is
        places = [package, *(place for place in sys.path if place)]
        start = f"import sys; sys.path[:0] = {places!r}; from grit_runtime.cuda.helper import main; main()"
        environment = {name: value for name, value in os.environ.items() if name not in HIDING}
        self.number = 0
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-I", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
            start_new_session=True,  # a signal meant for us must not cut a checkpoint in the middle
        )
        self.rest = b""
        try:
            self.facts = self.one("open", OPENING, way=way, path=binary, timeout=timeout)
        except Gone:
            self.close()
            raise checks.refuse("cuda-init-failed", result=names.result_name(names.NO_ANSWER)) from None
        problem = self.facts.get("problem")
        if problem:
            self.close()
            raise _refusal(problem, self.facts, binary)

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(0.5 if kind else 5.0)

    def send(self, do: str, **arguments: object) -> int:
        """Ask; the number under which the answer will come."""
        self.number += 1
        line = json.dumps({"n": self.number, "do": do, **arguments}) + "\n"
        pipe = self._pipe(self.process.stdin)
        try:
            pipe.write(line.encode())
            pipe.flush()
        except OSError:
            raise Gone(do) from None
        return self.number

    def receive(self, until: float) -> tuple[int, dict[str, Any]] | None:
        """The next answer and its number; None when `until` (time.monotonic) has come. Gone if the helper ended."""
        pipe = self._pipe(self.process.stdout).fileno()
        while b"\n" not in self.rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            data = os.read(pipe, 65536)
            if not data:
                raise Gone("the helper ended")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        answer = json.loads(line)
        return int(answer["n"]), answer.get("ok") or {"result": names.UNKNOWN, "error": answer.get("error", "")}

    def one(self, do: str, wait: float, **arguments: object) -> dict[str, Any]:
        """Ask one thing and wait `wait` seconds for it; Gone if no answer came."""
        number, until = self.send(do, **arguments), time.monotonic() + wait
        while (answer := self.receive(until)) is not None:
            if answer[0] == number:
                return answer[1]
        raise Gone(do)

    def all(self, do: str, each: Mapping[int, Mapping[str, object]], wait: float) -> dict[int, Answer]:
        """`do` for every PID of `each` (its further arguments) at the same time; NO_ANSWER where time ran out."""
        until = time.monotonic() + wait
        answers = {pid: Answer(names.NO_ANSWER) for pid in each}
        asked = {}
        try:
            asked = {self.send(do, pid=pid, **more): pid for pid, more in each.items()}
            while asked and (got := self.receive(until)) is not None:
                pid = asked.pop(got[0], None)
                if pid is not None:
                    fields = got[1]
                    answers[pid] = Answer(fields["result"], fields.get("seconds", 0.0), fields.get("state", -1))
        except Gone:
            pass
        return answers

    def states(self, pids: list[int], wait: float = 30.0) -> dict[int, Answer]:
        return self.all("state", {pid: {} for pid in pids}, wait)

    def close(self, wait: float = 5.0) -> None:
        """End it. One that still waits for the driver after `wait` seconds is killed."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise Gone("closed")
        return pipe


def _refusal(problem: str, facts: Mapping[str, Any], binary: str) -> checks.Refusal:
    if problem == "libcuda":
        return checks.refuse("cuda-missing")
    if problem == "old":
        return checks.refuse("driver-too-old", driver=facts.get("driver") or "unknown", binary=binary)
    if problem == "binary":
        return checks.refuse("cuda-binary-missing", binary=binary)
    return checks.refuse("cuda-init-failed", result=names.result_name(facts.get("result", names.UNKNOWN)))
