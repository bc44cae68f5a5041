"""Suspend and resume all GPU processes of a container at the same time, all or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from grit_runtime import checks, manifest

from . import client, holders, names, steps


class Phase(NamedTuple):
    """One round of calls: what it was, seconds from its beginning to its last answer, each process's own seconds."""

    call: str
    seconds: float
    each: dict[int, float]


def down(
    helper: client.Helper, before: Mapping[int, int], sizes: Mapping[int, int], timeout: float
) -> list[Phase]:
    """Bring all of `before` (pid -> state) to CHECKPOINTED. What fails first is refused; nothing is undone.

    The caller undoes, with a helper of its own: after a timeout this one still waits for the driver.
    """
    phases, goals = [], dict.fromkeys(before, names.CHECKPOINTED)
    for step in steps.rounds(before, goals):
        alive = [pid for pid in step.pids if holders.started(pid)]
        wait = steps.allowance(step.call, timeout, sum(sizes.values()))
        phase, answers = _round(helper, step.call, alive, wait)
        phases.append(phase)
        wrong = [pid for pid in alive if answers[pid].result != names.SUCCESS]
        # one that ended by itself before anything was taken from it is no failure
        wrong = [pid for pid in wrong if step.call == "checkpoint" or not holders.ending(pid)]
        if wrong:
            raise failure(step.call, wrong[0], answers[wrong[0]].result, helper.facts)
    return phases


def up(
    helper: client.Helper,
    goals: Mapping[int, int],
    sizes: Mapping[int, int],
    timeout: float,
    pairs: Iterable[tuple[str, str]] = (),
) -> list[Phase]:
    """Bring all of `goals` (pid -> state) from whatever state they are in to that state, each as far as it goes.

    States are asked first and asked again until nothing is on its way any more, so a half-done operation of a process
    that died is completed too. One that fails does not keep the others; the first failure is raised at the end.
    """
    phases: list[Phase] = []
    until = time.monotonic() + steps.allowance("restore", timeout, sum(sizes.values()))
    trouble: checks.Refusal | None = None
    given: dict[int, str] = {}
    table = [list(pair) for pair in pairs]
    while True:
        alive = [pid for pid in goals if holders.started(pid) and pid not in given]
        states = {pid: answer.state for pid, answer in helper.states(alive, max(1.0, until - time.monotonic())).items()}
        todo = steps.rounds(states, goals)
        waiting = steps.transient(states) or [pid for pid in alive if states[pid] < 0]
        if not todo and (not waiting or time.monotonic() > until):
            break
        if not todo:
            time.sleep(0.05)
            continue
        step = todo[0]
        more = {"pairs": table} if step.call == "restore" else {}
        phase, answers = _round(helper, step.call, step.pids, max(1.0, until - time.monotonic()), more)
        phases.append(phase)
        for pid in step.pids:
            result = answers[pid].result
            retry = result in (names.ILLEGAL_STATE, names.NOT_READY) and time.monotonic() < until
            if result != names.SUCCESS and not retry and not holders.ending(pid):
                given[pid] = step.call
                trouble = trouble or failure(step.call, pid, result, helper.facts)
        if all(answers[pid].result != names.SUCCESS for pid in step.pids):
            time.sleep(0.05)  # nothing moved: do not spin while the driver is busy
    for pid in goals:
        if pid not in given and holders.started(pid) and states.get(pid, -1) != goals[pid]:
            state, goal = names.state_name(states.get(pid, -1)), names.state_name(goals[pid])
            trouble = trouble or checks.refuse("cuda-state-stuck", pid=pid, state=state, goal=goal)
    if trouble is not None:
        raise trouble
    return phases


def _round(
    helper: client.Helper, call: str, pids: Iterable[int], wait: float, more: Mapping[str, object] | None = None
) -> tuple[Phase, dict[int, client.Answer]]:
    extra: dict[str, object] = dict(more or {})
    if call == "lock":
        # the driver's own limit ends first, and then leaves the process running
        extra["timeout_ms"] = max(1, int(wait * 1000) - 500)
    begin = time.monotonic()
    answers = helper.all(call, dict.fromkeys(pids, extra), wait)
    return Phase(call, time.monotonic() - begin, {pid: answer.seconds for pid, answer in answers.items()}), answers


def failure(call: str, pid: int, result: int, facts: Mapping[str, Any]) -> checks.Refusal:
    """The refusal for what the driver answered."""
    known: dict[str, object] = {"pid": pid, "call": call, "result": names.result_name(result)}
    if call == "checkpoint" and result != names.NO_ANSWER and _ends(pid):
        return checks.refuse("cuda-process-died", **known)
    if call in ("lock", "checkpoint") and result != names.NO_ANSWER and _nvls(pid):
        return checks.refuse("gpu-nvls", **known)
    if result == names.NO_ANSWER:
        return checks.refuse("cuda-timeout", **known)
    if call == "lock" and result == names.NOT_READY:
        return checks.refuse("cuda-lock-timeout", **known)
    if result == names.NOT_SUPPORTED:
        if facts.get("machine") == "aarch64" and 0 < major(str(facts.get("driver", ""))) < 595:
            return checks.refuse("driver-aarch64", driver=facts.get("driver"))
        return checks.refuse("cuda-managed-memory", **known)
    if call == "restore" and result == names.OUT_OF_MEMORY:
        return checks.refuse("cuda-restore-memory", **known)
    return checks.refuse("cuda-call-failed", **known)


def _ends(pid: int, patience: float = 0.5) -> bool:
    """Does a process end? One that was killed just now may not have noticed yet."""
    until = time.monotonic() + patience
    while not holders.ending(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _nvls(pid: int) -> bool:
    """May NCCL have made multicast objects in this process: an NVSwitch, NCCL loaded, and nobody switched it off?"""
    if not os.path.exists("/dev/nvidia-nvswitchctl") or "/libnccl.so" not in holders.maps_of(pid):
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"NCCL_NVLS_ENABLE=0" not in file.read().split(b"\0")
    except OSError:
        return False


def major(driver: str) -> int:
    """580 of "580.159.04"; 0 if it says nothing."""
    first = driver.partition(".")[0]
    return int(first) if first.isdigit() else 0


# --- the undo of a suspension, from a plain record ---


def resume(record: Mapping[str, Any], helper: client.Helper | None = None) -> list[Phase]:
    """Bring the processes of `record` back to the states they were in. Usable from any process at any time after the
    record was written; what is done already is left alone. A `helper` that is open already saves a cuInit; it is
    closed.

    `record` (JSON): states_before {"pid": state}, started {"pid": clock ticks}, bytes {"pid": n}, pairs, way, binary,
    timeout.
    """
    started, goals = record.get("started") or {}, {}
    for pid, state in record["states_before"].items():
        now = holders.started(int(pid))
        if now and now == started.get(pid, now):
            goals[int(pid)] = int(state)
    if not goals:
        return []
    sizes = {int(pid): int(size) for pid, size in (record.get("bytes") or {}).items()}
    pairs = [(old, new) for old, new in record.get("pairs") or []]
    with helper or client.Helper(record["way"], record["binary"], record["timeout"]) as opened:
        return up(opened, goals, sizes, record["timeout"], pairs)


def image_bytes(folder: str) -> int:
    """The bytes of memory in an image folder: CRIU's pages-*.img and our gpu-*.mem together."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if (entry.name[:6], entry.name[-4:]) == ("pages-", ".img") or manifest.is_gpu_memory(entry.name):
                total += entry.stat(follow_symlinks=False).st_size
    return total
