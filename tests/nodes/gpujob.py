"""A container with the probe in it, on the SIMULATED driver: started, restored, asked, checkpointed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.gpu.simulation import MIB, onnode
from tests.gpu.simulation.onnode import OnNode
from tests.testbed import Node
from tests.testbed.container import Container
from tests.testbed.node import until

BASE = "/var/lib/grit/gpu"
SIZE = 24 * MIB


class Job:
    """A container with the probe in it, and what it says."""

    def __init__(self, container: Container, processes: int) -> None:
        self.container, self.processes = container, processes
        for number in range(processes):
            until("the probe's start", lambda number=number: self.file(f"status.{number}").exists(), 120)  # type: ignore[misc]

    def file(self, name: str) -> Path:
        return self.container.path(f"/talk/{name}")

    def ask(self, number: int = 0) -> dict[str, Any]:
        """The hash of its GPU memory now, made by the process itself."""
        word, answer = str(time.monotonic_ns()), self.file(f"answer.{number}")
        self.file("new").write_text(word)
        self.file("new").rename(self.file(f"ask.{number}"))

        def given() -> Any:
            return answer.exists() and (found := json.loads(answer.read_text()))["word"] == word and found

        found: dict[str, Any] = until("an answer", given, 120)
        return found

    def intact(self) -> int:
        """Every process has in its GPU memory what it filled it with; how often the first has counted."""
        for number in range(self.processes):
            assert self.ask(number)["hash"] == json.loads(self.file(f"status.{number}").read_text())["hash"]
        return int(self.ask()["ticks"])

    def pids(self) -> list[str]:
        """All its processes, as the node numbers them."""
        listed = self.container.node.ctr("tasks", "ps", self.container.name).splitlines()[1:]
        return [line.split()[0] for line in listed]


def start(
    one: OnNode, name: str, *flags: str, processes: int = 1, source: str = "", size: int = SIZE, limit: int = 0,
    notes: dict[str, str] | None = None,
) -> Job:  # fmt: skip
    """Start the probe under our runtime, or restore it from `source`."""
    one.simulation.used()
    words = [onnode.PROGRAM, onnode.TALK, "--bytes", str(size), "--processes", str(processes), *flags]
    command = f"mkdir -p {onnode.TALK}; exec /usr/bin/python3 -I -S {' '.join(words)}"
    options = [*one.options(), *(["--memory-limit", str(limit)] if limit else [])]
    container = one.node.start(
        name, annotations={"grit.dev/checkpoint": source, **(notes or {})} if source else {}, options=options,
        args=["/bin/sh", "-c", command], wait=False,
    )  # fmt: skip
    return Job(container, processes)


def checkpoint(job: Job, leave_running: bool = False) -> str:
    base = f"{BASE}/{job.container.name}-{time.monotonic_ns()}/{job.container.name}"
    job.container.checkpoint(f"{base}/checkpoint", leave_running=leave_running)
    return base


def gates(node: Node, place: str, *words: str, code: int = 0) -> dict[str, str]:
    """The levels of the gates of `gritctl verify --node` that are about GPUs: by reason, or by name where open."""
    done = node.run(["gritctl", "verify", "--node", "--json", *words, place], check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)["gates"]
    return {gate["reason"] or gate["name"]: gate["level"] for gate in found if gate["name"].startswith("gpu")}
