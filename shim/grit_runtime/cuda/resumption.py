"""The GPU processes of a container that is being restored: room made for them, resumed, limits put back."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from grit_runtime import manifest
from grit_runtime.checks import Refusal, refuse
from grit_runtime.process import host_pids

from . import asking, client, inventory, limits, suspend
from .carry.copying import Job, put
from .carry.regions import Region, of, within

if TYPE_CHECKING:
    from grit_runtime.journal import Journal
    from grit_runtime.settings import Cuda


class Resumption:
    """The GPU processes of a container that is being restored, as `plan_restore` made it. `processes`: none means that
    there is nothing to do. `pairs`: (old UUID, new UUID) of every GPU. `passed`: refusals that were allowed. The helper
    that was asked stays for `resume`, so that cuInit is over when the tasks are there."""

    def __init__(self, cuda: Cuda, part: inventory.Part | None) -> None:
        self.helper: client.Helper | None = None
        self.cuda, self.part = cuda, part
        self.processes = part.processes if part is not None else ()
        self.pairs: list[tuple[str, str]] = []
        self.passed: list[Refusal] = []
        self.raises: list[limits.Raise] = []
        self.original: dict[str, Any] = {}
        self.phases: list[suspend.Phase] = []
        self.need = 0

    def raised(self, spec: dict[str, Any]) -> dict[str, Any]:
        """`spec` with room for the GPU's memory, which lies in the processes until they are resumed. Pure."""
        made = copy.deepcopy(spec) if self.need else spec
        if self.need:
            self.original = limits.raise_spec(made, self.need)
        return made

    def make_room(self, journal: Journal) -> None:
        """Raise the limits of the control groups above the container's, before it exists, and hold huge pages. For a
        container that is held until its `start`, forget the steps `lower-limit`: resuming lowers them."""
        if not self.processes:
            return
        asking.huge_pages(self.cuda, journal)
        if self.raises:
            journal.add("lower-limit", record=[[step.file, step.old] for step in self.raises])
            limits.raise_all(self.raises)

    def return_memory(self, images: str, pids: Iterable[int]) -> None:
        """Give restored processes what CRIU's images lack, from the files beside them. To be called while the tasks
        stand still in CRIU's hands, their mappings restored; `pids`: the host's numbers of all of them. Refuses
        gpu-process-missing and gpu-memory-unreturned."""
        if self.part is None or not self.part.beside:
            return
        by_inner = host_pids(pids)
        jobs = []
        for one in self.part.beside:
            if one.pid not in by_inner:
                raise refuse("gpu-process-missing", pid=one.pid)
            regions = tuple(Region(*pair) for pair in one.regions)
            path = f"{images}/{manifest.gpu_memory(one.pid, one.number)}"
            jobs.append(Job(by_inner[one.pid], path, regions))
        try:
            mappings = {pid: of(pid) for pid in {job.pid for job in jobs}}
            for job in jobs:
                # what a manifest says must not make us write anywhere else, or more than there is
                if not within(job.regions, mappings[job.pid]):
                    raise refuse("gpu-memory-unreturned", path=job.path, error="the process has no such memory")
                if os.stat(job.path, follow_symlinks=False).st_size != job.size:
                    raise refuse("gpu-memory-unreturned", path=job.path, error="it has another size")
            put(jobs)
        except OSError as error:
            raise refuse("gpu-memory-unreturned", path=images, error=error) from error

    def resume(self, pids: Iterable[int]) -> None:
        """Resume all, at the same time, with the full GPU map, then put the memory limits to what the spec says.
        `pids`: the host's numbers of all processes of the container. Refuses gpu-process-missing and what `resume`
        does."""
        if self.processes:
            helper, self.helper = self.helper, None
            self.phases = resume_restored(self.to_json(), pids, helper)

    def close(self) -> None:
        """End the helper, where `resume` will not be called in this process."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close()

    def to_json(self) -> dict[str, Any]:
        """All that `resume_restored` needs; {} when there is nothing to do."""
        if not self.processes:
            return {}
        return {
            "processes": [list(process) for process in self.processes],
            "pairs": [list(pair) for pair in self.pairs],
            "original": self.original,
            "limits": [[step.file, step.old] for step in self.raises],
            **asking.way(self.cuda),
        }


def resume_restored(
    facts: Mapping[str, Any], pids: Iterable[int], helper: client.Helper | None = None
) -> list[suspend.Phase]:
    """`Resumption.resume` from its JSON, in another process."""
    if not facts:
        return []
    by_inner = host_pids(pids)
    found: dict[int, inventory.Process] = {}
    for row in facts["processes"]:
        process = inventory.Process(*row)
        if process.pid not in by_inner:
            raise refuse("gpu-process-missing", pid=process.pid)
        found[by_inner[process.pid]] = process
    record = {
        "states_before": {str(pid): process.before for pid, process in found.items()},
        "bytes": {str(pid): process.bytes for pid, process in found.items()},
        **{name: facts[name] for name in ("pairs", "way", "binary", "timeout")},
    }
    phases = suspend.resume(record, helper)
    lower([*facts["limits"], *limits.originals(next(iter(found)), facts["original"])])
    return phases


def lower(record: Iterable[Iterable[Any]]) -> None:
    """Put memory limits back: `record` is [[file, bytes], ...]. Refuses memory-limit-left."""
    left = limits.lower_all(record)
    if left:
        raise refuse("memory-limit-left", file=left[0])
