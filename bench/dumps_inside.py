"""Runs in a node: dumps two containers in turn, one through us, the other by runc itself. Prints what both took.

usage: dumps_inside.py ROUNDS < {"ours": SIDE, "theirs": SIDE}      SIDE: {"pid": N, "id": ID, "runtime": PATH,
"options": [...], "environment": {...}}. Output: {"running wall": [[ours], [theirs]], "running frozen": ..., "paused
wall": ..., "paused frozen": ...} in seconds, and with these what only tells more: "phase NAME": [[ours], []].

The containers go on after each dump (--leave-running). "running" is a checkpoint of a running container; "paused" is
containerd's way: pause, checkpoint, resume. "wall" is the time of the call of checkpoint; "frozen" is the longest time
between two beats of the container's heart, which the container measures itself.
"""

import json
import os
import shutil
import sys
import time
from typing import Any

Side = dict[str, Any]
ROOT = "/run/containerd/runc/default"  # containerd's folder of runc's state, of its namespace "default"
IMAGES = "/var/lib/grit/bench"
LOGS = "/var/lib/grit-runtime/logs"
SAID = "/tmp/bench-said"


def call(side: Side, *words: str) -> float:
    """How long the runtime takes, in s. RuntimeError with its words if it fails."""
    argv = [side["runtime"], "--root", ROOT, *words]
    with open(SAID, "wb") as said:
        began = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, {**os.environ, **side["environment"]}, file_actions=[
            (os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
        ])  # fmt: skip
        status = os.waitpid(pid, 0)[1]
        took = time.perf_counter() - began
    if status:
        with open(SAID) as text:
            raise RuntimeError(f"{argv}: {text.read()}")
    return took


def longest_gap(side: Side) -> float:
    """The longest gap between two beats since this was last asked, in s."""
    talk = f"/proc/{side['pid']}/root/run/workload"
    with open(f"{talk}/new-bench", "w") as file:
        json.dump({"question": "heartbeat"}, file)
    os.rename(f"{talk}/new-bench", f"{talk}/ask-bench")
    end = time.monotonic() + 60
    while True:
        try:
            with open(f"{talk}/answer-bench") as file:
                found = json.load(file)
            os.unlink(f"{talk}/answer-bench")
            return float(found["longest"])
        except FileNotFoundError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def dump(side: Side, paused: bool) -> tuple[float, float]:
    """(wall, frozen) of one dump."""
    shutil.rmtree(IMAGES, ignore_errors=True)
    os.makedirs(IMAGES)
    longest_gap(side)
    if paused:
        call(side, "pause", side["id"])
    try:
        words = ("checkpoint", "--image-path", IMAGES, "--work-path", IMAGES, "--leave-running", *side["options"])
        wall = call(side, *words, side["id"])
    finally:
        if paused:
            call(side, "resume", side["id"])
    return wall, longest_gap(side)


def phases(id: str) -> dict[str, float]:
    """What our record tells of the newest dump: {phase: s}."""
    newest = max(name for name in os.listdir(f"{LOGS}/{id}") if not name.startswith("."))
    with open(f"{LOGS}/{id}/{newest}/record.json") as file:
        found: dict[str, float] = json.load(file)["phases"]
        return found


def main() -> None:
    sides = json.load(sys.stdin)
    try:
        os.nice(-10)  # both sides alike: what else this machine does shall disturb less
    except OSError:
        pass
    times: dict[str, tuple[list[float], list[float]]] = {}

    def note(name: str, number: int, took: float) -> None:
        times.setdefault(name, ([], []))[number].append(took)

    order = (sides["ours"], sides["theirs"])
    for side in order:  # once, so that all files are read
        dump(side, False)
    for turn in range(int(sys.argv[1])):
        for mode in ("running", "paused"):
            for number, side in sorted(enumerate(order), reverse=bool(turn % 2), key=lambda one: one[0]):
                wall, frozen = dump(side, mode == "paused")
                note(f"{mode} wall", number, wall)
                note(f"{mode} frozen", number, frozen)
                if number == 0:
                    for name, took in phases(side["id"]).items():
                        note(f"{mode} phase {name}", 0, took)
    shutil.rmtree(IMAGES)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
