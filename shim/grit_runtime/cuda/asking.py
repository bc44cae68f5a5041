"""What the parts of a suspension and of a resumption ask: the driver and NVML through the helper, and /proc."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from grit_runtime.checks import refuse

from . import client, hugepages, inventory, names
from .holders import Holder

if TYPE_CHECKING:
    from grit_runtime.journal import Journal
    from grit_runtime.settings import Cuda


def way(cuda: Cuda) -> dict[str, Any]:
    return {"way": cuda.way, "binary": cuda.binary, "timeout": cuda.timeout}


def huge_pages(cuda: Cuda, journal: Journal) -> list[int]:
    """Hold huge pages if they are wanted; the journal's steps, none or one."""
    if not cuda.huge_pages:
        return []
    step = journal.add("huge-pages", record=hugepages.user())
    hugepages.hold()
    return [step]


def asked(helper: client.Helper, found: list[Holder]) -> tuple[list[Holder], dict[int, dict[str, int]], list[int]]:
    """The holders with the driver's answers and NVML's bytes; those that neither hold anything nor are known to the
    driver are none. With them NVML's table {pid: {uuid: bytes}} of these processes, and who works through MPS."""
    found_out = []
    for holder, answer in zip(found, helper.states([holder.pid for holder in found]).values(), strict=True):
        if answer.result == names.NO_ANSWER:
            raise refuse("cuda-timeout", pid=holder.pid, call="state", result=names.result_name(answer.result))
        state = answer.state if answer.result == names.SUCCESS else None
        if holder.holds or state is not None:
            found_out.append(holder._replace(driver_state=state))
    if not found_out:
        return [], {}, []
    answers, mine = told(helper, "usage"), {holder.pid for holder in found_out}
    usage = {int(pid): share for pid, share in answers["usage"].items() if int(pid) in mine}
    measured = [holder._replace(bytes=sum(usage.get(holder.pid, {}).values())) for holder in found_out]
    return measured, usage, list(answers["mps"])


def sized(holder: Holder, usage: Mapping[int, Mapping[str, int]], gpus: Iterable[inventory.Gpu]) -> Holder:
    """NVML may name no process (of a namespace it cannot see): count what the container's GPUs have in use then."""
    if holder.driver_state == names.CHECKPOINTED or holder.pid in usage:
        return holder
    return holder._replace(bytes=sum(gpu.memory - gpu.free for gpu in gpus))


def gpus(helper: client.Helper) -> list[inventory.Gpu]:
    return inventory.from_answer(told(helper, "inventory")["gpus"])


def told(helper: client.Helper, question: str) -> dict[str, Any]:
    try:
        answer = helper.one(question, 60.0)
    except client.Gone:
        raise refuse("nvml-missing", why=f"no answer to {question}") from None
    problem = answer.get("problem") or answer.get("error")
    if problem:
        raise refuse("nvml-missing", why=problem)
    return answer
