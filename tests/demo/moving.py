"""Carries out the demo's cases on the testbed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.testbed import Testbed
from tests.testbed.node import CommandFailed

from . import plain_restore
from .cases import Case, Run

if TYPE_CHECKING:
    from tests.testbed.container import Container
    from tests.testbed.node import Node

BASE = "/var/lib/grit/demo"
# MiB: what the issue of a real job is made of, and enough for a counter
SIZES = {"everything": "256", "counter": "16"}
PARTS = {"everything": "", "counter": "memory,counter"}


class Mover:
    """Moves containers between the nodes of `bed`."""

    def __init__(self, bed: Testbed) -> None:
        self.nodes = {node.name: node for node in bed.nodes}
        self.count = 0
        for node in bed.nodes:
            node.write(plain_restore.NAME, plain_restore.PROGRAM, 0o755)
            node.write(plain_restore.CRIU_NAME, plain_restore.CRIU)

    def life(self, cases: list[Case]) -> Iterator[Run]:
        """Start a container and move it by each case in turn; a Run for each, as it is done."""
        first = cases[0]
        container = self._start(self.nodes[first.source], first, {})
        container.wait_ready()
        for case in cases:
            run, restored = self._move(container, case)
            yield run
            if run.case.leave_running or not run.checkpointed:
                container.delete()
            if restored is None:
                return
            container = restored
        container.delete()

    def _start(self, node: Node, case: Case, annotations: dict[str, str]) -> Container:
        self.count += 1
        runtime = "grit" if case.with_us else plain_restore.NAME
        env = {"GRIT_MEMORY": SIZES[case.program], "NVIDIA_VISIBLE_DEVICES": "all"}
        if PARTS[case.program]:
            env["GRIT_PARTS"] = PARTS[case.program]
        return node.start(f"demo{self.count}", runtime=runtime, annotations=annotations, env=env, wait=False)

    def _move(self, container: Container, case: Case) -> tuple[Run, Container | None]:
        source, target = self.nodes[case.source], self.nodes[case.target]
        base = f"{BASE}/{container.name}"
        images = f"{base}/{container.name}/checkpoint"
        seconds: dict[str, float] = {}
        before = container.ask("identity")
        try:
            with _Timed(seconds, "checkpoint"):
                container.checkpoint(images, leave_running=case.leave_running)
        except CommandFailed as error:
            return Run(case, error=_criu_says(source, str(error)), seconds=seconds), None
        if case.leave_running:
            here = container.ask("check")
            if here["bad"]:
                return Run(case, True, error=f"what was left running is not as it was: {here['bad']}"), None
        else:
            container.delete()
        with _Timed(seconds, "copy"):
            if source is not target:
                source.push(base, target, base)
        path = f"{base}/{container.name}" if case.with_us else images
        try:
            with _Timed(seconds, "restore"):
                restored = self._start(target, case, {"grit.dev/checkpoint": path})
        except CommandFailed as error:
            return Run(case, True, error=_log_says(target, images) or str(error)[-300:], seconds=seconds), None
        check = restored.ask("check")
        if check["identity"] != before["identity"]:
            return Run(case, True, True, check, "it is another process, not the one that was dumped", seconds), restored
        return Run(case, True, True, check, None, seconds), restored


class _Timed:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.monotonic() - self.start


def _criu_says(node: Node, error: str) -> str:
    """The error of CRIU's log that containerd names; without one, the end of what containerd says."""
    named = re.search(r"path= (/\S+?\.log)", error)
    log = node.path(named[1]) if named else None
    lines = _errors(log.read_text(errors="replace")) if log and log.exists() else []
    return lines[0] if lines else error[-300:]


def _log_says(node: Node, images: str) -> str | None:
    log = node.path(f"{images}-work/restore.log")
    lines = _errors(log.read_text(errors="replace")) if log.exists() else []
    return lines[0] if lines else None


def _errors(text: str) -> list[str]:
    """CRIU's error lines without time, task and place in its source. Of limits that it can't raise it only tells."""
    lines = [re.sub(r"^.*?Error \([^)]*\): ", "", line) for line in text.splitlines() if "Error (" in line]
    return [" ".join(line.split()) for line in lines if not line.startswith("rlimit: ")]
