"""Our side of the carrier, and how what it took is put back."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from grit_runtime import cgroup, process
from grit_runtime.checks import refuse
from grit_runtime.manifest import gpu_memory

from .copying import FILES, Job, job, mark, put
from .regions import Region, of

if TYPE_CHECKING:
    from grit_runtime.journal import Journal


def mappings(pids: Iterable[int]) -> dict[int, list[Region]]:
    """What each process has mapped by itself, to be compared with when it is suspended; those that are gone have
    nothing."""
    found = {}
    for pid in pids:
        with suppress(OSError):
            found[pid] = of(pid)
    return found


class Carrier:
    """Takes GPU memory out of suspended processes. `taken`: the jobs, with their files' sums in `pieces`; `problem`:
    why there are none, and CRIU has to carry it all.

    The files come into `folder`. `before` is what `mappings` gave before the suspension, `inner` the PIDs that the
    container's own namespace has, `group` the container's, `least` the bytes from which on a mapping is worth it.
    """

    def __init__(
        self, folder: str, before: Mapping[int, list[Region]], inner: Mapping[int, int], group: cgroup.Group,
        journal: Journal, least: int,
    ) -> None:  # fmt: skip
        self.taken: list[Job] = []
        self.pieces: dict[str, list[str]] = {}
        self.problem = ""
        self.inner, self.group, self.journal, self.emptied = inner, group, journal, False
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        start = f"import sys; sys.path.insert(0, {package!r}); from grit_runtime.cuda.carry.carrier import main; main()"
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-I", "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        rows = [{"pid": pid, "inner": inner[pid], "before": before[pid]} for pid in before]
        self.question = {"folder": folder, "marks": journal.folder, "group": group, "least": least, "processes": rows}
        self.files = [f"{folder}/{gpu_memory(inner[pid], number)}" for pid in before for number in range(FILES)]

    def take(self, wait: float) -> None:
        """Save the memory into files and empty the mappings. The processes stand still until `let_go`. If it can't be
        done in `wait` seconds, or at all, they have everything that they had."""
        end = time.monotonic() + wait
        answer = self._asked(self.question, end)
        if "saved" not in answer:
            self._give_up(answer)
            return
        rows = answer["saved"]
        if not rows:
            return
        jobs = [job(row) for row in rows]
        step = self.journal.add("return-gpu-memory", **self.record(jobs))
        self.emptied = True
        answer = self._asked("drop", end + wait)
        if "dropped" not in answer:
            self._end(kill=False)
            self.journal.undo(step)
            self._give_up(answer)
            return
        self.taken, self.pieces = jobs, {row["path"]: row["pieces"] for row in rows}

    def record(self, jobs: Iterable[Job]) -> dict[str, Any]:
        """The arguments of `put_back`."""
        rows = [{**one._asdict(), "started": process.started(one.pid)} for one in jobs]
        pid = self.process.pid if self.process else 0
        carrier = [pid, process.started(pid)]
        return {"jobs": rows, "group": self.group, "marks": self.journal.folder, "carrier": carrier}

    def let_go(self, *, frozen: bool) -> None:
        """The processes run on: into the freezer if the container has been told to freeze, else with all that they had.
        Refuses gpu-carrier-died: then they may have run before that."""
        carrier = self.process
        if carrier is not None and self.taken and frozen:
            with suppress(OSError):
                self._tell("go")
        self._end(kill=not self.emptied)
        if carrier is not None and self.taken and carrier.returncode:
            raise refuse("gpu-carrier-died", code=carrier.returncode)

    def _give_up(self, answer: dict[str, Any]) -> None:
        self.problem = str(answer.get("problem") or "no answer in time")
        self._end(kill=not self.emptied)
        for path in self.files:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _asked(self, what: object, end: float) -> dict[str, Any]:
        """The answer to a line; {} when none comes until `end`."""
        try:
            self._tell(what)
        except OSError:
            return {}
        assert self.process is not None and self.process.stdout is not None
        said, out = b"", self.process.stdout.fileno()
        while not said.endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                return {}
            part = os.read(out, 1 << 20)
            if not part:
                return {}
            said += part
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _tell(self, what: object) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def _end(self, *, kill: bool) -> None:
        ended, self.process = self.process, None
        if ended is None:
            return
        if kill:
            ended.kill()
        with suppress(OSError):
            ended.communicate()  # closes both pipes; one that was told nothing puts back what it took


def put_back(jobs: Iterable[Mapping[str, Any]], group: Iterable[Any], marks: str, carrier: tuple[int, str]) -> None:
    """The undo of `Carrier.take`: the processes get back what is in the files. A carrier that lives on, without its
    caller, does that itself and marks it; its end is waited for, however long it takes. What it has not done is done
    with the container frozen, which the undo of the freezing ends. OSError if it can't be done."""
    while process.runs(*carrier):
        time.sleep(0.02)
    left = [
        row
        for row in jobs
        if process.runs(int(row["pid"]), row["started"]) and not os.path.exists(mark(marks, row["path"]))
    ]
    if not left:
        return
    cgroup.freeze(cgroup.Group(*group), give_up=False)
    trouble: OSError | None = None
    for row in left:
        try:
            put([job(row)])
        except OSError as error:
            if process.runs(int(row["pid"]), row["started"]):
                trouble = error
    if trouble:
        raise trouble
