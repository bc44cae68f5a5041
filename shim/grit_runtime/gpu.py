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

import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from grit_runtime.checks import refuse
from grit_runtime.cuda import asking, client, holders, hugepages, inventory, limits, resumption, suspend
from grit_runtime.cuda.holders import Holder, prove_absent
from grit_runtime.cuda.resumption import Resumption, resume_restored
from grit_runtime.cuda.suspension import Suspension

if TYPE_CHECKING:
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
        return asking.asked(helper, found)[0]


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


def resume(record: Mapping[str, Any]) -> list[suspend.Phase]:
    """Bring every process of a record back to the state that it names, all at the same time. From any process, also
    after the one that suspended has died half-way; what is in order already is left alone. The container must not be
    frozen. Refuses, each after all the others are done: cuda-call-failed, cuda-timeout, cuda-state-stuck."""
    return suspend.resume(record) if record else []


lower_limit = resumption.lower


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
        here = _live(made.helper, spec)
        made.pairs = map_gpus(made.part, here, allow)
        if made.part.driver != here.driver:
            made.passed.append(refuse("driver-mismatch", old=made.part.driver, new=here.driver or "none"))
        need = max(made.part.bytes, sum(one.size for one in made.part.beside))
        if need > limits.available():
            raise refuse("host-memory", need=need >> 20, have=limits.available() >> 20)
    except BaseException:
        made.close()
        raise
    made.need = made.part.bytes + cuda.margin
    made.raises = limits.plan(limits.levels_above(str((spec.get("linux") or {}).get("cgroupsPath") or "")), made.need)
    return made


def live(cuda: Cuda, spec: Mapping[str, Any]) -> inventory.Live:
    """The driver and the GPUs that a container with this config.json gets, in CUDA's order."""
    with client.Helper(cuda.way, cuda.binary, cuda.timeout) as helper:
        return _live(helper, spec)


def _live(helper: client.Helper, spec: Mapping[str, Any]) -> inventory.Live:
    facts = helper.facts
    gpus = inventory.of_container(asking.gpus(helper), inventory.minors_of_spec(spec))
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
