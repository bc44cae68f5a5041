"""Runs in a node: times calls through us and without us, in turn. Prints {name: [[with us], [without us]]} in seconds.

usage: calls_inside.py CGROUP-PARENT
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time

OURS, THEIRS = "/usr/bin/grit-runtime", "/usr/bin/nvidia-container-runtime"
FOLDER = "/tmp/bench"
CALLS, LIVES = 200, 40
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: the containers' processes become our children, as they become a shim's


def timed(*words: str) -> float:
    """How long the call takes, in s; what it says goes to a file. RuntimeError if it fails."""
    with open(f"{FOLDER}/said", "wb") as said:
        began = time.perf_counter()
        pid = os.posix_spawn(words[0], words, os.environ, file_actions=[
            (os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
        ])  # fmt: skip
        status = os.waitpid(pid, 0)[1]
        took = time.perf_counter() - began
    if status:
        with open(f"{FOLDER}/said") as text:
            raise RuntimeError(f"{words}: {text.read()}")
    return took


def bundle(parent: str) -> str:
    """Makes a bundle of busybox; the text of its config.json, compact as containerd writes it."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(f"{FOLDER}/bundle/rootfs/bin")
    shutil.copy("/usr/bin/busybox", f"{FOLDER}/bundle/rootfs/bin/busybox")
    subprocess.run(["runc", "spec"], cwd=f"{FOLDER}/bundle", check=True)
    with open(f"{FOLDER}/bundle/config.json") as file:
        spec = json.load(file)
    spec["process"].update(terminal=False, args=["/bin/busybox", "sleep", "1000"])
    spec["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all")
    spec["root"]["readonly"] = False
    spec["annotations"] = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "app"}
    spec["linux"]["cgroupsPath"] = f"{parent}/bench"
    return json.dumps(spec, separators=(",", ":"))


def life(runtime: str, text: str) -> dict[str, float]:
    """A container from create to delete. "life" is the sum of the calls, without the wait for its end."""
    with open(f"{FOLDER}/bundle/config.json", "w") as file:
        file.write(text)
    pid_file = f"{FOLDER}/pid"
    times = {"create": timed(runtime, "create", "--bundle", f"{FOLDER}/bundle", "--pid-file", pid_file, "bench")}
    times["start"] = timed(runtime, "start", "bench")
    times["state"] = timed(runtime, "state", "bench")
    times["kill"] = timed(runtime, "kill", "bench", "KILL")
    with open(pid_file) as file:
        os.waitpid(int(file.read()), 0)
    times["delete"] = timed(runtime, "delete", "bench")
    return {**times, "life": sum(times.values())}


def alone() -> None:
    """Go before what else runs on this machine, as far as we may; both sides get the same."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        pass


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    alone()
    text = bundle(sys.argv[1])
    times: dict[str, tuple[list[float], list[float]]] = {}

    def note(name: str, side: int, took: float) -> None:
        times.setdefault(name, ([], []))[side].append(took)

    for runtime in (OURS, THEIRS):  # once, so that all files are read
        life(runtime, text)
    for turn in range(LIVES):
        for side, runtime in sorted(enumerate((OURS, THEIRS)), reverse=bool(turn % 2)):
            for name, took in life(runtime, text).items():
                if name != "state":
                    note(name, side, took)
    with open(f"{FOLDER}/bundle/config.json", "w") as file:
        file.write(text)
    timed(OURS, "create", "--bundle", f"{FOLDER}/bundle", "--pid-file", f"{FOLDER}/pid", "bench")
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})  # a call is one thread; without its moves between CPUs the figure holds still
    try:
        for turn in range(CALLS):
            for side, runtime in sorted(enumerate((OURS, THEIRS)), reverse=bool(turn % 2)):
                note("--version", side, timed(runtime, "--version"))
                note("state", side, timed(runtime, "state", "bench"))
    finally:
        os.sched_setaffinity(0, cpus)
        timed(OURS, "delete", "--force", "bench")
        shutil.rmtree(FOLDER)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
