"""Which CUDA calls bring processes from the states they are in to the states they should be in. Pure.

RUNNING -lock-> LOCKED -checkpoint-> CHECKPOINTED -restore-> LOCKED -unlock-> RUNNING (cuda.h, CUDA_CHECKPOINT).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from . import names


class Round(NamedTuple):
    """One call for several processes at the same time. The next round begins when all have answered: no process is
    checkpointed before all are locked, so that what fails while locking costs nothing but an unlock."""

    call: str
    pids: tuple[int, ...]


ORDER = (
    ("restore", names.CHECKPOINTED, names.LOCKED),
    ("unlock", names.LOCKED, names.RUNNING),
    ("lock", names.RUNNING, names.LOCKED),
    ("checkpoint", names.LOCKED, names.CHECKPOINTED),
)


def rounds(states: Mapping[int, int], goals: Mapping[int, int]) -> list[Round]:
    """The calls for `states` (pid -> CUprocessState) to become `goals`. Processes that are in another state than the
    first three, or in no goal, get none."""
    now = {pid: state for pid, state in states.items() if state in (0, 1, 2) and pid in goals}
    found = []
    for call, start, end in ORDER:
        pids = tuple(pid for pid, state in now.items() if state == start and _between(end, start, goals[pid]))
        if pids:
            found.append(Round(call, pids))
            now.update((pid, end) for pid in pids)
    return found


def _between(end: int, start: int, goal: int) -> bool:
    """Does the step from `start` to `end` lead towards `goal`?"""
    return start < end <= goal or goal <= end < start


def transient(states: Mapping[int, int]) -> list[int]:
    """Those on their way from one state to another: ask again."""
    return [pid for pid, state in states.items() if state in (names.CHECKPOINTING, names.RESTORING)]


def allowance(call: str, timeout: float, size: int) -> float:
    """Seconds that a call may take: `timeout`, and for those that move GPU memory 2 s more for each GiB, far above the
    1.5 to 4 GiB/s that were measured."""
    return timeout + (2.0 * size / (1 << 30) if call in ("checkpoint", "restore") else 0.0)
