"""Figures on a real NVIDIA GPU, all in one run:

    PYTHONPATH=shim:. python3 bench/gpu.py [--out FOLDER] [--gib N] [once] [huge] [one] [four]

Four processes at once against one after the other, huge pages on against off, the whole against the hand sequence of
`cuda-checkpoint` and `runc`, and bytes and GB/s of each phase. Exit code 1 if one is below what we promise.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from grit_runtime.ctl.gpu_test import inner, sizes
from grit_runtime.cuda import hugepages
from grit_runtime.cuda.client import Helper
from grit_runtime.cuda.trial import Trial

from tests.gpu.device import machine

GIB = 1 << 30
IMAGES = Path("/dev/shm/gpu-bench")


class Ratio(NamedTuple):
    """How many times faster `ours` (s) is than `theirs`; `least`: what we promise."""

    name: str
    theirs: float
    ours: float
    least: float

    @property
    def value(self) -> float:
        return self.theirs / self.ours

    @property
    def kept(self) -> bool:
        return self.value >= self.least

    def line(self) -> str:
        promise = f">= {self.least:g}  {'ok' if self.kept else 'BROKEN'}" if self.least else ""
        return f"{self.name:<58} {self.theirs:7.2f} s {self.ours:7.2f} s {self.value:5.2f} x  {promise}".rstrip()


@contextmanager
def pages(word: str) -> Iterator[None]:
    """Transparent huge pages set to `word` for a while."""
    place = Path(hugepages.SETTING)
    before = hugepages.chosen(place.read_text())
    place.write_text(word)
    try:
        yield
    finally:
        place.write_text(before)


def took(helper: Helper, call: str, pids: list[int], *, at_once: bool) -> float:
    """Seconds for `call` on all of `pids`."""
    more: dict[str, object] = {"lock": {"timeout_ms": 0}, "restore": {"pairs": []}}.get(call, {})  # type: ignore[assignment]
    begin = time.monotonic()
    for group in [pids] if at_once else [[pid] for pid in pids]:
        answers = helper.all(call, dict.fromkeys(group, more), 300)
        wrong = {pid: answer for pid, answer in answers.items() if answer.result}
        if wrong:
            raise RuntimeError(f"{call}: {wrong}")
    return time.monotonic() - begin


def cycle(
    helper: Helper, pids: list[int], *, at_once: bool, between: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Seconds of each call; `between` the checkpoint and the restore something is looked at."""
    down = {call: took(helper, call, pids, at_once=at_once) for call in ("lock", "checkpoint")}
    between()
    return down | {call: took(helper, call, pids, at_once=at_once) for call in ("restore", "unlock")}


def in_huge_pages(pid: int) -> float:
    """The share of a process's anonymous memory that is in huge pages (AnonHugePages of smaps_rollup)."""
    found = re.findall(r"^(Anonymous|AnonHugePages): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    sizes = {name: int(size) for name, size in found}
    return sizes["AnonHugePages"] / sizes["Anonymous"]


def at_once(gib: int) -> list[Ratio]:
    """Four processes: one cuInit for all, one after the other, then at the same time."""
    program = ["--bytes", str(gib * GIB), "--processes", "4"]
    with Trial("/run/gpu-bench/once", "bench-once", program, python=machine.PYTHON) as made, Helper() as helper:
        made.start()
        pids = machine.host_pids(made)
        cycle(helper, pids, at_once=True)  # the first one pays for pages that the second finds warm
        one = cycle(helper, pids, at_once=False)
        all_ = cycle(helper, pids, at_once=True)
        made.hashes()
    name = f"4 processes of {gib} GiB, one after the other / at once"
    return [
        Ratio(f"{name}: CUDA checkpoint", one["lock"] + one["checkpoint"], all_["lock"] + all_["checkpoint"], 3.0),
        Ratio(f"{name}: CUDA restore", one["restore"] + one["unlock"], all_["restore"] + all_["unlock"], 1.0),
    ]


def huge(gib: int, rounds: int = 3) -> tuple[list[Ratio], list[str]]:
    """One large process, huge pages as most systems have them (madvise) and as we set them, in turns: the median."""
    times: dict[str, list[dict[str, float]]] = {"madvise": [], "always": []}
    shares: list[float] = []
    with Trial("/run/gpu-bench/huge", "bench-huge", ["--bytes", str(gib * GIB)], python=machine.PYTHON) as made:
        made.start()
        pids = machine.host_pids(made)
        with Helper() as helper:
            cycle(helper, pids, at_once=True)  # it pays for pages that all others find warm
            for _ in range(rounds):
                for word, found in times.items():
                    with pages(word):
                        look = partial(lambda pid: shares.append(in_huge_pages(pid)), pids[0])
                        found.append(cycle(helper, pids, at_once=True, between=look))
    off, on = ({call: median(one[call] for one in found) for call in found[0]} for found in times.values())
    ratios = [
        Ratio(f"huge pages off / on, {gib} GiB: CUDA checkpoint", off["checkpoint"], on["checkpoint"], 1.5),
        Ratio(f"huge pages off / on, {gib} GiB: CUDA restore", off["restore"], on["restore"], 1.0),
    ]
    rounds_seen = ", ".join(f"{one['checkpoint']:.2f}" for pair in zip(*times.values(), strict=True) for one in pair)
    in_them = ", ".join(f"{share:.0%}" for share in shares)
    return ratios, [f"huge pages, each round off, on: {rounds_seen} s; of the memory in huge pages: {in_them}"]


def whole(gib: int, processes: int, least: float) -> tuple[list[Ratio], list[str]]:
    """Checkpoint and restore from beginning to end, by hand and with us."""
    program = ["--bytes", str(gib * GIB), "--processes", str(processes)]
    folder = str(IMAGES / "images")
    with machine.ByHand("/run/gpu-bench/hand", "bench-hand", program) as hand:
        hand.start()
        hashes = hand.hashes()
        begin = time.monotonic()
        hand.cuda("--action", "lock", "--timeout", "60000")
        hand.cuda("--action", "checkpoint")
        hand.checkpoint(folder, "--tcp-established", "--file-locks", "--manage-cgroups-mode", "ignore")
        dump = time.monotonic() - begin
        begin = time.monotonic()
        hand.restore_in_place(folder)
        hand.cuda("--action", "restore")
        hand.cuda("--action", "unlock")
        back = time.monotonic() - begin
        if hand.hashes() != hashes:
            raise RuntimeError("by hand: GPU memory is not what it was")
    shutil.rmtree(IMAGES, ignore_errors=True)
    with Trial("/run/gpu-bench/ours", "bench-ours", program, python=machine.PYTHON) as ours:
        ours.start()
        hashes = ours.hashes()
        mine, again = ours.checkpoint(folder).seconds, ours.restore(folder).seconds
        if ours.hashes() != hashes:
            raise RuntimeError("GPU memory is not what it was")
        known = sizes(folder)
        rows = [f"{operation:<8} {phase.name.strip():<10} {phase.seconds:6.2f} s {phase.bytes / 1e9:7.2f} GB"
                f" {phase.bytes / 1e9 / max(phase.seconds, 1e-9):6.2f} GB/s"
                for operation in ("dump", "restore")
                for phase in inner(ours.name, operation, known)]  # fmt: skip
    shutil.rmtree(IMAGES, ignore_errors=True)
    name = f"by hand / with us, {processes} x {gib} GiB"
    ratios = [Ratio(f"{name}: checkpoint", dump, mine, 0.0), Ratio(f"{name}: restore", back, again, 0.0)]
    return [*ratios, Ratio(f"{name}: both", dump + back, mine + again, least)], [f"{name}:", *rows]


def main(words: list[str]) -> int:
    options: dict[str, str] = dict(zip(words, words[1:], strict=False))
    out, gib = Path(options.get("--out", "build")), int(options.get("--gib", "4"))
    out.mkdir(parents=True, exist_ok=True)
    found: list[Ratio] = []
    rows: list[str] = []
    trouble: list[str] = []
    steps: dict[str, Any] = {
        "once": lambda: (at_once(gib), []),
        "huge": lambda: huge(2 * gib),
        "one": lambda: whole(gib, 1, 0.95),
        "four": lambda: whole(gib, 4, 2.0),
    }
    for step in [steps[word] for word in words if word in steps] or steps.values():
        try:
            ratios, more = step()
        except Exception as error:
            trouble.append(f"{type(error).__name__}: {error}")
            print(trouble[-1], flush=True)
            continue
        print("\n".join([*(ratio.line() for ratio in ratios), *more]), flush=True)
        found, rows = found + ratios, rows + more
    facts, ratios = machine.facts(), [{**one._asdict(), "times": one.value} for one in found]
    result = {"machine": facts, "ratios": ratios, "phases": rows, "trouble": trouble}
    (out / "bench-gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    text = [f"Run of {facts['date']}: `PYTHONPATH=shim:. python3 bench/gpu.py`", "", "```"]
    text += [f"{'':<58} {'without':>9} {'with':>9}", *(ratio.line() for ratio in found), "", *rows, *trouble, "```"]
    (out / "bench-gpu.md").write_text("\n".join(text) + "\n")
    return 0 if all(one.kept for one in found) and not trouble else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
