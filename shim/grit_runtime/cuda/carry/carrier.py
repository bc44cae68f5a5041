"""The process that takes GPU memory out of suspended processes: it traces them, so it is the one that must not die.

It has a session of its own. Its caller says each step; if the caller is killed, it puts everything back, notes that in
`returned` files, lets the processes go, and ends. Lines of JSON on stdin and stdout:

    {"folder": "/images", "least": 67108864, "processes": [{"pid": 4711, "inner": 7, "before": [[start, size], ...]}]}
    {"saved": [{"pid": 4711, "path": "/images/gpu-7-0.mem", "regions": [[start, size], ...], "pieces": ["0a1b2c3d"]}]}
    "drop"                                   the processes stand still from the first answer
    {"dropped": true}
    "go"                                     to here
"""

from __future__ import annotations

import json
import sys
from typing import Any

from grit_runtime.manifest import gpu_memory

from .copying import Job, put, returned, save, shares
from .regions import Region, new, of, worth
from .stopped import Stopped


def main() -> None:
    held: list[Stopped] = []
    try:
        jobs = _save(json.loads(sys.stdin.readline()), held)
        if jobs and _told("drop"):
            _drop(jobs, held)
        else:
            _note(jobs)
    except Exception as error:
        _say({"problem": str(error) or type(error).__name__})
    finally:
        for one in held:
            one.let_go()


def _save(asked: dict[str, Any], held: list[Stopped]) -> list[Job]:
    """Copy what of each process is worth it into files; `held` gets the processes, which stand still from here on."""
    for row in asked["processes"]:
        held.append(Stopped(row["pid"]))
    jobs = []
    for row in asked["processes"]:
        before = [Region(*pair) for pair in row["before"]]
        found = worth(row["pid"], new(before, of(row["pid"])), asked["least"])
        for number, share in enumerate(shares(found) if found else []):
            jobs.append(Job(row["pid"], f"{asked['folder']}/{gpu_memory(row['inner'], number)}", share))
    sums = save(jobs)
    _say({"saved": [{**job._asdict(), "pieces": sums[job.path]} for job in jobs]})
    return jobs


def _drop(jobs: list[Job], held: list[Stopped]) -> None:
    """Empty the regions that are saved, and wait for the word to let go; without it they are filled again."""
    stopped = {one.pid: one for one in held}
    try:
        for job in jobs:
            stopped[job.pid].drop(job.regions)
        _say({"dropped": True})
        if _told("go"):
            return
    except BaseException:
        _return(jobs)
        raise
    _return(jobs)


def _return(jobs: list[Job]) -> None:
    put(jobs)
    _note(jobs)


def _note(jobs: list[Job]) -> None:
    """Whoever undoes for our caller must not put anything back: the process has it, runs on, and may change it."""
    for job in jobs:
        with open(returned(job.path), "x"):
            pass


def _told(word: str) -> bool:
    return sys.stdin.readline() == json.dumps(word) + "\n"


def _say(answer: dict[str, Any]) -> None:
    try:
        print(json.dumps(answer), flush=True)
    except OSError:
        pass  # nobody listens; what was asked for will not come either


if __name__ == "__main__":
    main()
