"""The GPU processes of a container that is to be dumped: looked at, suspended, described."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from grit_runtime import cgroup
from grit_runtime.checks import Refusal, refuse
from grit_runtime.process import anonymous_bytes, inner_pids

from . import asking, client, holders, inventory, limits, names, steps, suspend
from .carry.client import Carrier, mappings
from .holders import Holder

if TYPE_CHECKING:
    from grit_runtime.journal import Journal
    from grit_runtime.settings import Cuda


class Suspension:
    """The GPU processes of a container that is to be dumped, as `plan` found them.

    `holders`: none means that there is nothing to do; of a container that was frozen these are all that may be on the
    GPU. `known`: those of them that the driver knows. `phases`: what the calls took. `taken`: the bytes that moved from
    the GPUs into the processes, known after `suspend`.
    """

    def __init__(self, cuda: Cuda, pids: list[int], found: list[Holder]) -> None:
        self.cuda, self.pids, self.holders = cuda, pids, found
        self.known: list[Holder] = []
        self.gpus: list[inventory.Gpu] = []
        self.raises: list[limits.Raise] = []
        self.phases: list[suspend.Phase] = []
        self.driver, self.version, self.taken = "", 0, 0
        self.description: dict[str, Any] = {}
        self.helper: client.Helper | None = None
        self.carrier: Carrier | None = None

    def ask(self) -> None:
        """Ask the driver and NVML about the holders. Refuses what `plan` refuses."""
        try:
            self.helper = client.Helper(self.cuda.way, self.cuda.binary, self.cuda.timeout)
        except Refusal:
            if any(holder.holds for holder in self.holders):
                raise
            return  # the library is mapped, and there is no driver behind it: nothing is on a GPU
        try:
            self._look(self.helper)
        except BaseException:
            self.close()
            raise
        if not self.known:
            self.close()

    def _look(self, helper: client.Helper) -> None:
        self.driver, self.version = str(helper.facts.get("driver", "")), int(helper.facts.get("cuda", 0))
        if helper.facts.get("machine") == "aarch64" and 0 < suspend.major(self.driver) < 595:
            raise refuse("driver-aarch64", driver=self.driver)
        asked, usage, mps = asking.asked(helper, self.holders)
        holders.judge(asked, major=suspend.major(self.driver), mps=mps)
        if not asked:
            return
        gpus = inventory.of_container(asking.gpus(helper), inventory.minors_of_process(asked[0].pid))
        for gpu in gpus:
            if gpu.mig:
                raise refuse("gpu-mig", gpu=gpu.uuid)
        self.gpus = [gpu._replace(used=sum(share.get(gpu.uuid, 0) for share in usage.values())) for gpu in gpus]
        self.known = [asking.sized(holder, usage, gpus) for holder in asked]
        if self.bytes > limits.available():
            raise refuse("host-memory", need=self.bytes >> 20, have=limits.available() >> 20)
        self.raises = limits.plan(limits.levels_of(holder.pid for holder in asked), self.bytes + self.cuda.margin)

    @property
    def bytes(self) -> int:
        """GPU memory of all processes, as NVML reports it."""
        return sum(holder.bytes for holder in self.known)

    @property
    def record(self) -> dict[str, Any]:
        """The undo as plain JSON, for `resume` in any process."""
        return {
            "pids": [holder.pid for holder in self.known],
            "states_before": {str(holder.pid): holder.driver_state for holder in self.known},
            "started": {str(holder.pid): holders.started(holder.pid) for holder in self.known},
            "bytes": {str(holder.pid): holder.bytes for holder in self.known},
            "pairs": [],
            **asking.way(self.cuda),
        }

    def suspend(self, journal: Journal, images: str = "", group: cgroup.Group | None = None) -> dict[str, Any]:
        """Raise the memory limits, then suspend every process at the same time; returns `record`. `images`: where
        `save_memory` will write to, and the container's `group`; neither if it won't be called.

        The container must not be frozen: its own threads do the work. If one fails or the time runs out, all of it is
        undone, in reverse, before the refusal is raised: cuda-timeout, cuda-lock-timeout, cuda-managed-memory,
        gpu-nvls, cuda-process-died, cuda-call-failed.
        """
        if not self.known:
            self.ask()
        if not self.known:
            return {}  # libcuda is loaded somewhere, and that is all
        record = self.record
        self.description = self._describe()
        steps = asking.huge_pages(self.cuda, journal)
        try:
            if self.raises:
                steps.append(journal.add("lower-limit", record=[[step.file, step.old] for step in self.raises]))
                limits.raise_all(self.raises)
            steps.append(journal.add("resume-gpu", record=record))
            if group and self.cuda.past_criu:
                self.carrier = self._carrier(images, group, journal)
            self._down()
        except BaseException:
            self.close(0.5)
            self.let_go(frozen=False)
            for step in reversed(steps):
                with suppress(Exception):  # what can't be undone now stays open in the journal
                    journal.undo(step)
            raise
        self.close()
        self.description["taken"] = self.taken
        return record

    def _carrier(self, images: str, group: cgroup.Group, journal: Journal) -> Carrier:
        """Started before the suspension: it must know what the processes had until then."""
        pids = [holder.pid for holder in self.known if holder.driver_state != names.CHECKPOINTED]
        return Carrier(images, mappings(pids), inner_pids(self.pids), group, journal, self.cuda.past_criu)

    def save_memory(self) -> dict[str, list[str]]:
        """Move what was on the GPUs into files of the image folder, past CRIU; the sums of their pieces by file name.

        The processes stand still from here until `let_go`, which is due when the container has been told to freeze:
        they lack memory, and the step in the journal that gives it back is undone before the container is thawed.
        """
        if self.carrier is None:
            return {}
        self.carrier.take(steps.allowance("checkpoint", self.cuda.timeout, self.bytes))
        numbers: dict[int, int] = {}
        beside = []
        for job in self.carrier.taken:
            numbers[job.pid] = number = numbers.get(job.pid, -1) + 1
            regions = tuple((*region,) for region in job.regions)
            beside.append(inventory.Beside(self.carrier.inner[job.pid], number, regions)._asdict())
        self.description["beside"] = beside
        return {os.path.basename(path): pieces for path, pieces in self.carrier.pieces.items()}

    def let_go(self, *, frozen: bool) -> str:
        """End what `save_memory` began; why CRIU carries the memory, "" if it doesn't. `frozen`: the container has been
        told to freeze; else the processes get everything back first."""
        carrier, self.carrier = self.carrier, None
        if carrier is None:
            return ""
        carrier.let_go(frozen=frozen)
        return carrier.problem

    def _down(self) -> None:
        assert self.helper is not None
        before = {holder.pid: int(holder.driver_state or 0) for holder in self.known}
        sizes = {holder.pid: holder.bytes for holder in self.known}
        resident = {pid: anonymous_bytes(pid) for pid in before}
        self.phases = suspend.down(self.helper, before, sizes, self.cuda.timeout)
        grown = {pid: max(0, anonymous_bytes(pid) - resident[pid]) for pid in before}
        # what else grew meanwhile is not the GPU's
        self.taken = sum(min(grown[pid], sizes[pid]) for pid in before)

    def _describe(self) -> dict[str, Any]:
        """The GPU part of the manifest; PIDs as the container's own namespace has them."""
        inner = inner_pids(self.pids)
        processes = tuple(
            inventory.Process(inner[holder.pid], int(holder.driver_state or 0), holder.bytes)
            for holder in self.known
        )
        part = inventory.Part(self.driver, self.version, tuple(self.gpus), processes, self.bytes, 0, ())
        return inventory.to_json(part)

    def close(self, wait: float = 5.0) -> None:
        """End the helper process; nothing is undone by it. For one who planned and then does not suspend."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close(wait)
