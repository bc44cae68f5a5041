"""The process that takes GPU memory out of suspended processes: it traces them, so it is the one that must not die.

It has a session of its own. Its caller says each step; if the caller is killed, it puts everything back, marks that in
the caller's journal folder, lets the processes go, and ends. Lines of JSON on stdin and stdout:

    {"folder": "/images", "marks": "/run/...", "group": [path, version], "least": 67108864,
     "processes": [{"pid": 4711, "inner": 7, "before": [[start, size], ...]}]}
    {"saved": [{"pid": 4711, "path": "/images/gpu-7-0.mem", "regions": [[start, size], ...], "pieces": ["0a1b2c3d"]}]}
    "drop"                                   the processes stand still from the first answer
    {"dropped": true}
    "go"                                     to here; the container has been told to freeze
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from typing import Any

from grit_runtime import cgroup
from grit_runtime.manifest import gpu_memory

from .copying import Job, mark, put, save, shares
from .regions import Region, new, of, worth
from .stopped import Stopped


def main() -> None:
    held: list[Stopped] = []
    try:
        asked = json.loads(sys.stdin.readline())
        with _Leaving():
            jobs, sums = _save(asked, held)
        # from here on it may be in the caller's journal that something was taken
        _say({"saved": [{**job._asdict(), "pieces": sums[job.path]} for job in jobs]})
        if jobs and _told("drop"):
            _drop(jobs, held, asked)
        else:
            _mark(jobs, asked)
    except Exception as error:
        _say({"problem": str(error) or type(error).__name__})
    finally:
        for one in held:
            one.let_go()


class _Leaving:
    """While nothing is taken yet, a caller that dies ends us at once: its guardian needs the processes running."""

    def __enter__(self) -> None:
        self.end, self.over = os.pipe()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        os.close(self.over)
        self.thread.join()
        os.close(self.end)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(0, 0)  # that the other end is closed is always told
        poll.register(self.end, 0)
        if 0 in dict(poll.poll()):
            os._exit(1)


def _save(asked: dict[str, Any], held: list[Stopped]) -> tuple[list[Job], dict[str, list[str]]]:
    """Copy what of each process is worth it into files, which come with their sums; `held` gets the processes, which
    stand still from here on."""
    for row in asked["processes"]:
        held.append(Stopped(row["pid"]))
    jobs = []
    for row in asked["processes"]:
        before = [Region(*pair) for pair in row["before"]]
        found = worth(row["pid"], new(before, of(row["pid"])), asked["least"])
        for number, share in enumerate(shares(found) if found else []):
            jobs.append(Job(row["pid"], f"{asked['folder']}/{gpu_memory(row['inner'], number)}", share))
    return jobs, save(jobs)


def _drop(jobs: list[Job], held: list[Stopped], asked: dict[str, Any]) -> None:
    """Empty the regions that are saved, and wait for the word to let go; without it they are filled again."""
    stopped = {one.pid: one for one in held}
    try:
        for job in jobs:
            stopped[job.pid].drop(job.regions)
        _say({"dropped": True})
        if _told("go"):
            return
    except BaseException:
        _return(jobs, asked)
        raise
    _return(jobs, asked)


def _return(jobs: list[Job], asked: dict[str, Any]) -> None:
    """Each process gets its memory back, whatever becomes of the others."""
    trouble: Exception | None = None
    for pid in dict.fromkeys(job.pid for job in jobs):
        mine = [job for job in jobs if job.pid == pid]
        try:
            put(mine)
            _mark(mine, asked)
        except Exception as error:
            if os.path.exists(f"/proc/{pid}/maps"):
                trouble = error
    if trouble:
        # They must not run as they are: the guardian tries again, and thaws the container if it can give it all back.
        cgroup.begin_to_freeze(cgroup.Group(*asked["group"]))
        raise trouble


def _mark(jobs: list[Job], asked: dict[str, Any]) -> None:
    """Whoever undoes for our caller must not put anything back: the process has it, runs on, and may change it."""
    for job in jobs:
        with open(mark(asked["marks"], job.path), "w"):
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
