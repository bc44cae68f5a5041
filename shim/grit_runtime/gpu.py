"""GPU processes of a container: suspended before CRIU dumps it, resumed after it runs again, here or on other GPUs.

    suspension = gpu.plan(settings.cuda, pids, links, spec)   # looks and refuses by reason; nothing is changed yet
    if suspension.holders:
        suspension.suspend(journal)                           # all at once, all or nothing; undos in the journal
        gpu.prove_absent(pids)                                # before CRIU
        gpu.prove_in_images(folder, suspension.taken)         # after CRIU
    manifest["gpu"] = suspension.description                  # {} for a container without a GPU

    resumption = gpu.plan_restore(settings.cuda, manifest["gpu"], spec, allow)  # maps the GPUs, refuses by reason
    spec = resumption.raised(spec)                            # the bundle's config.json, with memory for the GPU's
    resumption.make_room(journal)                             # the control groups above, huge pages
    resumption.resume(pids)                                   # the tasks run: all at once, then the limits
    gpu.resume_restored(resumption.to_json(), pids)           # the same, from another process

A container that has no GPU costs no more than the walk over descriptors that its caller made already.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from grit_runtime.checks import Refusal, refuse
from grit_runtime.cuda import client, holders, hugepages, inventory, limits, names, suspend
from grit_runtime.cuda.holders import Holder, prove_absent

if TYPE_CHECKING:
    from grit_runtime.journal import Journal
    from grit_runtime.settings import Cuda

__all__ = [
    "Holder",
    "Resumption",
    "Suspension",
    "holders_of",
    "huge_pages_back",
    "live",
    "lower_limit",
    "map_gpus",
    "plan",
    "plan_restore",
    "present",
    "prove_absent",
    "prove_in_images",
    "resume",
    "resume_restored",
]

map_gpus = inventory.map_gpus
Links = Mapping[tuple[int, int], str]


def present(spec: Mapping[str, Any] | None = None) -> bool:
    """Can a container have a GPU at all: by its spec's devices and mounts, or, without one, by the node's /dev?"""
    return inventory.in_spec(spec) if spec is not None else os.path.exists("/dev/nvidiactl")


def holders_of(
    pids: Iterable[int], links: Links | None = None, *, cuda: Cuda | None = None, maps: bool | None = None
) -> list[Holder]:
    """Who is on the GPU among `pids` (host PIDs): by descriptors (`links` {(pid, fd): link} shares a walk that was
    made), by mappings (read only where the node has a GPU, or as `maps` says), and, if `cuda` is given, by the driver's
    answer with the bytes that NVML reports. [] without loading anything when nobody has anything of a GPU."""
    found = holders.candidates(pids, links, maps=present() if maps is None else maps)
    if not found or cuda is None:
        return [holder for holder in found if holder.holds]
    with client.Helper(cuda.way, cuda.binary, cuda.timeout) as helper:
        return _asked(helper, found)[0]


def plan(
    cuda: Cuda, pids: Iterable[int], links: Links | None = None, spec: Mapping[str, Any] | None = None
) -> Suspension:
    """Look at a container that is to be dumped. Refuses: gpu-forked-child, gpu-without-cuda, gpu-mig, gpu-mps,
    cuda-ipc, cuda-failed-state, cuda-off, driver-too-old, driver-aarch64, cuda-missing, cuda-binary-missing,
    cuda-init-failed, nvml-missing, host-memory. Of a frozen container the driver is asked only in `suspend`, when it
    has been thawed: its own threads would have to answer."""
    every = list(pids)
    found = holders.candidates(every, links, maps=present(spec))
    if found and cuda.way == "off":
        if any(holder.holds for holder in found):
            raise refuse("cuda-off", pid=next(holder.pid for holder in found if holder.holds))
        found = []
    made = Suspension(cuda, every, found)
    if found and not any(holders.frozen(holder.pid) for holder in found):
        made.ask()
        made.holders = made.known
    return made


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
        asked, usage, mps = _asked(helper, self.holders)
        holders.judge(asked, major=suspend.major(self.driver), mps=mps)
        if not asked:
            return
        gpus = inventory.of_container(_gpus(helper), inventory.minors_of_process(asked[0].pid))
        for gpu in gpus:
            if gpu.mig:
                raise refuse("gpu-mig", gpu=gpu.uuid)
        self.gpus = [gpu._replace(used=sum(share.get(gpu.uuid, 0) for share in usage.values())) for gpu in gpus]
        self.known = [_sized(holder, usage, gpus) for holder in asked]
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
            **_way(self.cuda),
        }

    def suspend(self, journal: Journal) -> dict[str, Any]:
        """Raise the memory limits, then suspend every process at the same time; returns `record`.

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
        steps = _huge_pages(self.cuda, journal)
        try:
            if self.raises:
                steps.append(journal.add("lower-limit", record=[[step.file, step.old] for step in self.raises]))
                limits.raise_all(self.raises)
            steps.append(journal.add("resume-gpu", record=record))
            self._down()
        except BaseException:
            self.close(0.5)
            for step in reversed(steps):
                with suppress(Exception):  # what can't be undone now stays open in the journal
                    journal.undo(step)
            raise
        self.close()
        self.description["taken"] = self.taken
        return record

    def _down(self) -> None:
        assert self.helper is not None
        before = {holder.pid: int(holder.driver_state or 0) for holder in self.known}
        sizes = {holder.pid: holder.bytes for holder in self.known}
        resident = {pid: suspend.anonymous(pid) for pid in before}
        self.phases = suspend.down(self.helper, before, sizes, self.cuda.timeout)
        grown = {pid: max(0, suspend.anonymous(pid) - resident[pid]) for pid in before}
        # what else grew meanwhile is not the GPU's
        self.taken = sum(min(grown[pid], sizes[pid]) for pid in before)

    def _describe(self) -> dict[str, Any]:
        """The GPU part of the manifest; PIDs as the container's own namespace has them."""
        depth = _depth(self.pids)
        processes = tuple(
            inventory.Process(_namespace_pids(holder.pid)[depth], int(holder.driver_state or 0), holder.bytes)
            for holder in self.known
        )
        part = inventory.Part(self.driver, self.version, tuple(self.gpus), processes, self.bytes, 0)
        return inventory.to_json(part)

    def close(self, wait: float = 5.0) -> None:
        """End the helper process; nothing is undone by it. For one who planned and then does not suspend."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close(wait)


def resume(record: Mapping[str, Any]) -> list[suspend.Phase]:
    """Bring every process of a record back to the state that it names, all at the same time. From any process, also
    after the one that suspended has died half-way; what is in order already is left alone. The container must not be
    frozen. Refuses, each after all the others are done: cuda-call-failed, cuda-timeout, cuda-state-stuck."""
    return suspend.resume(record) if record else []


def lower_limit(record: Iterable[Iterable[Any]]) -> None:
    """The undo of raised memory limits: `record` is [[file, bytes], ...]. Refuses memory-limit-left."""
    left = limits.lower_all(record)
    if left:
        raise refuse("memory-limit-left", file=left[0])


def huge_pages_back(record: dict[str, Any]) -> None:
    """The undo of huge pages set to `always`."""
    hugepages.release(record)


def plan_restore(cuda: Cuda, part: object, spec: Mapping[str, Any], allow: Collection[str] = ()) -> Resumption:
    """Compare a manifest's GPU part ({}: no GPU; untrusted) with the GPUs that `spec`, the live config.json after
    NVIDIA's edit, gives the container. Refuses what inventory.map_gpus does (`allow`: reasons that are passed by), and
    gpu-manifest-invalid, cuda-off, host-memory, and what opening CUDA refuses."""
    if not part:
        return Resumption(cuda, None)
    made = Resumption(cuda, inventory.from_json(part))
    if made.part is None or not made.processes:
        return made
    if cuda.way == "off":
        raise refuse("cuda-off", pid=made.processes[0].pid)
    made.helper = client.Helper(cuda.way, cuda.binary, cuda.timeout)
    try:
        made.pairs = map_gpus(made.part, _live(made.helper, spec), allow)
        if made.part.bytes > limits.available():
            raise refuse("host-memory", need=made.part.bytes >> 20, have=limits.available() >> 20)
    except BaseException:
        made.close()
        raise
    made.need = made.part.bytes + cuda.margin
    made.raises = limits.plan(limits.levels_above(str((spec.get("linux") or {}).get("cgroupsPath") or "")), made.need)
    return made


class Resumption:
    """The GPU processes of a container that is being restored, as `plan_restore` made it. `processes`: none means that
    there is nothing to do. `pairs`: (old UUID, new UUID) of every GPU. The helper that was asked stays for `resume`, so
    that cuInit is over when the tasks are there."""

    def __init__(self, cuda: Cuda, part: inventory.Part | None) -> None:
        self.helper: client.Helper | None = None
        self.cuda, self.part = cuda, part
        self.processes = part.processes if part is not None else ()
        self.pairs: list[tuple[str, str]] = []
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
        _huge_pages(self.cuda, journal)
        if self.raises:
            journal.add("lower-limit", record=[[step.file, step.old] for step in self.raises])
            limits.raise_all(self.raises)

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
            **_way(self.cuda),
        }


def resume_restored(
    facts: Mapping[str, Any], pids: Iterable[int], helper: client.Helper | None = None
) -> list[suspend.Phase]:
    """`Resumption.resume` from its JSON, in another process."""
    if not facts:
        return []
    every = list(pids)
    depth = _depth(every)
    by_inner = {chain[depth]: pid for pid in every if len(chain := _namespace_pids(pid)) > depth}
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
    lower_limit([*facts["limits"], *limits.originals(next(iter(found)), facts["original"])])
    return phases


def live(cuda: Cuda, spec: Mapping[str, Any]) -> inventory.Live:
    """The driver and the GPUs that a container with this config.json gets, in CUDA's order."""
    with client.Helper(cuda.way, cuda.binary, cuda.timeout) as helper:
        return _live(helper, spec)


def _live(helper: client.Helper, spec: Mapping[str, Any]) -> inventory.Live:
    facts = helper.facts
    gpus = inventory.of_container(_gpus(helper), inventory.minors_of_spec(spec))
    return inventory.Live(
        str(facts["driver"]),
        int(facts["cuda"]),
        str(facts["way"]),
        bool(facts.get("maps")),
        str(facts["machine"]),
        tuple(gpus),
    )


def prove_in_images(folder: str, size: int) -> None:
    """Refuse `gpu-not-in-images` if CRIU's memory images are smaller than the `size` bytes taken from the GPUs."""
    have = suspend.image_bytes(folder)
    if have < size:
        raise refuse("gpu-not-in-images", have=have, need=size, path=folder)


# --- pieces of the above ---


def _way(cuda: Cuda) -> dict[str, Any]:
    return {"way": cuda.way, "binary": cuda.binary, "timeout": cuda.timeout}


def _huge_pages(cuda: Cuda, journal: Journal) -> list[int]:
    """Hold huge pages if they are wanted; the journal's steps, none or one."""
    if not cuda.huge_pages:
        return []
    step = journal.add("huge-pages", record=hugepages.user())
    hugepages.hold()
    return [step]


def _asked(helper: client.Helper, found: list[Holder]) -> tuple[list[Holder], dict[int, dict[str, int]], list[int]]:
    """The holders with the driver's answers and NVML's bytes; those that neither hold anything nor are known to the
    driver are none. With them NVML's table {pid: {uuid: bytes}} of these processes, and who works through MPS."""
    asked = []
    for holder, answer in zip(found, helper.states([holder.pid for holder in found]).values(), strict=True):
        if answer.result == names.NO_ANSWER:
            raise refuse("cuda-timeout", pid=holder.pid, call="state", result=names.result_name(answer.result))
        state = answer.state if answer.result == names.SUCCESS else None
        if holder.holds or state is not None:
            asked.append(holder._replace(driver_state=state))
    if not asked:
        return [], {}, []
    told, mine = _told(helper, "usage"), {holder.pid for holder in asked}
    usage = {int(pid): share for pid, share in told["usage"].items() if int(pid) in mine}
    sized = [holder._replace(bytes=sum(usage.get(holder.pid, {}).values())) for holder in asked]
    return sized, usage, list(told["mps"])


def _sized(holder: Holder, usage: Mapping[int, Mapping[str, int]], gpus: Iterable[inventory.Gpu]) -> Holder:
    """NVML may name no process (of a namespace it cannot see): count what the container's GPUs have in use then."""
    if holder.driver_state == names.CHECKPOINTED or holder.pid in usage:
        return holder
    return holder._replace(bytes=sum(gpu.memory - gpu.free for gpu in gpus))


def _gpus(helper: client.Helper) -> list[inventory.Gpu]:
    return inventory.from_answer(_told(helper, "inventory")["gpus"])


def _told(helper: client.Helper, question: str) -> dict[str, Any]:
    try:
        answer = helper.one(question, 60.0)
    except client.Gone:
        raise refuse("nvml-missing", why=f"no answer to {question}") from None
    problem = answer.get("problem") or answer.get("error")
    if problem:
        raise refuse("nvml-missing", why=problem)
    return answer


def _depth(pids: Iterable[int]) -> int:
    """How deep the container's own PID namespace lies below ours; its children may have deeper ones of their own."""
    return min((len(chain) for pid in pids if (chain := _namespace_pids(pid))), default=1) - 1


def _namespace_pids(pid: int) -> list[int]:
    """A process's PIDs in its namespaces, ours first (NSpid of /proc/PID/status); [] when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return [int(number) for number in line.split()[1:]]
    except (OSError, ValueError):
        pass
    return []
