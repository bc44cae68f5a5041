"""The undos that journal.UNDO names. Each takes plain values, runs from a process that knows nothing else, may run
twice, and finds nothing to do when the container is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import Any

from grit_runtime import cgroup, process


def thaw(path: str, version: int) -> None:
    """Of freezing a container."""
    cgroup.thaw(cgroup.Group(path, version))


def freeze(path: str, version: int) -> None:
    """Of thawing a container that its caller had paused."""
    group = cgroup.Group(path, version)
    if os.path.isdir(path):
        cgroup.freeze(group)


def reattach(record: dict[str, Any], path: str, version: int) -> None:
    """Of taking file watches away: put them back, with the same numbers."""
    from grit_runtime import watches

    pids = cgroup.processes(cgroup.Group(path, version))
    if pids:
        watches.reattach(watches.from_json(record), pids)


def resume_gpu(record: dict[str, Any]) -> None:
    """Of suspending GPU processes."""
    from grit_runtime import gpu

    gpu.resume(record)


def return_gpu_memory(jobs: list[dict[str, Any]], group: list[Any], marks: str, carrier: tuple[int, str]) -> None:
    """Of taking what was on the GPU out of suspended processes, into files beside CRIU's images."""
    from grit_runtime.cuda.carry import client

    client.put_back(jobs, group, marks, carrier)


def lower_limit(record: list[list[Any]]) -> None:
    """Of raising memory limits: [[file, bytes], ...]."""
    from grit_runtime import gpu

    gpu.lower_limit(record)


def remove_shm(folder: str, made: list[str]) -> None:
    """Of unpacking /dev/shm: only what was made there goes."""
    from grit_runtime import layer

    layer.remove_shm(folder, made)


def remove_sysv(path: str, inode: int, before: dict[str, list[int]]) -> None:
    """Of letting CRIU make System V objects in a pod's IPC namespace: what has come there since `before` goes."""
    from grit_runtime import sysv

    if os.path.exists(path) and os.stat(path).st_ino == inode:
        new = {kind: set(ids) - set(before.get(kind, ())) for kind, ids in sysv.objects(path).items()}
        sysv.remove(path, new)


def huge_pages(record: dict[str, Any]) -> None:
    """Of switching transparent huge pages on for the time of an operation."""
    from grit_runtime import gpu

    gpu.huge_pages_back(record)


def unmount(path: str) -> None:
    """Of a mount of ours: all that are stacked at `path`."""
    from grit_runtime.mounting import unmount as effect

    while effect(path):
        pass


def remove(path: str) -> None:
    """Of making a file or folder of ours."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def discard(folder: str) -> None:
    """Of dumping into `folder`: images of a dump that wasn't finished are no checkpoint, and may be large."""
    from grit_runtime import manifest

    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name == manifest.NAME or manifest.of_a_dump(name) or manifest.is_gpu_memory(name):
            os.unlink(f"{folder}/{name}")


def rewrite(path: str, text: str) -> None:
    """Of editing a small text file: its earlier content."""
    if os.path.exists(path):
        with open(path, "w") as file:
            file.write(text)


def unlend(pid: int, start: str, addresses: list[str]) -> None:
    """Of lending addresses to a container's loopback interface."""
    from grit_runtime import network

    if process.started(pid) == start:
        network.take_back(pid, addresses)


def unlock_network(pid: int, start: str, path: str, version: int) -> None:
    """Of letting CRIU lock the container's network and put its TCP sockets into repair mode, where CRIU was killed."""
    from grit_runtime import unlock

    if process.started(pid) == start:
        unlock.all_of(pid, cgroup.processes(cgroup.Group(path, version)))


def end_runtime(stages: str, gently: bool = False) -> None:
    """Of starting the next runtime: it, CRIU and their children end, found by the variable that only they carry.

    CRIU writes its title over its environment in memory, so children are looked for too, while their parents live.
    `gently`: of a dump; CRIU may be running its own code inside the container's tasks, which would die with it. So it
    is let go on to its next stage, fails there, and puts everything back itself.
    """
    ours: dict[int, str] = {}
    if gently:
        for pid in _descendants(_with_variable(f"GRIT_STAGES={stages}")):
            ours.setdefault(pid, process.started(pid))
        _let_criu_fail(stages, ours)
    end = time.monotonic() + 10
    while True:
        for pid in _descendants(_with_variable(f"GRIT_STAGES={stages}")):
            ours.setdefault(pid, process.started(pid))
        left = [pid for pid, start in ours.items() if process.runs(pid, start)]
        if not left:
            return
        for pid in left:
            _kill(pid)
        if time.monotonic() > end:
            raise TimeoutError(f"processes {left} don't end")
        time.sleep(0.02)


def _let_criu_fail(stages: str, ours: dict[int, str]) -> None:
    """Answer CRIU's action script with a failure, as often as it asks, until CRIU has ended; five minutes at most."""
    criu = {pid: start for pid, start in ours.items() if _name(pid).startswith("criu")}
    end = time.monotonic() + 300
    fds = []
    try:
        for name in ("ask", "answer"):
            fds.append(os.open(f"{stages}/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        os.write(fds[1], b"1\n")  # it may have asked already
        while time.monotonic() < end and any(process.runs(pid, start) for pid, start in criu.items()):
            try:
                os.write(fds[1], b"1\n" * os.read(fds[0], 4096).count(b"\n"))
            except BlockingIOError:
                time.sleep(0.02)
    except FileNotFoundError:
        pass
    finally:
        for fd in fds:
            os.close(fd)


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read()
    except OSError:
        return ""


def end_restore(runtime: str, options: list[str], id: str, root: str, groups: list[str], stages: str) -> None:
    """Of a restore: nothing of the container is left: no task, no cgroup, no mount, no state of the next runtime."""
    tasks = _descendants(_with_variable(f"GRIT_STAGES={stages}"))
    own = cgroup.mounted()
    for pid in tasks:
        _kill(pid)
    end_runtime(stages)
    # What runc bound on the rootfs goes first: its own delete would remove files through it.
    home = _state_folder(options, id)
    for point in [*_mounts_below(root), *_mounts_below(home)]:
        unmount(point)
    subprocess.run([runtime, *options, "delete", "--force", id], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, timeout=30, check=False)  # fmt: skip
    # A runtime that was killed before it had written its state leaves the folder, in which runc binds CRIU's root.
    if os.path.isdir(home) and not _mounts_below(home):
        shutil.rmtree(home, ignore_errors=True)
    places = sorted(own.items(), key=lambda place: place[0] not in ("", "freezer"))  # the frozen must be thawed to die
    made = [cgroup.Group(top + name, 2 if controller == "" else 1) for name in groups for controller, top in places]
    made = [group for group in made if os.path.isdir(group.path)]
    for group in made:
        cgroup.kill(group)
    end = time.monotonic() + 5
    while made := [group for group in made if os.path.isdir(group.path)]:  # a task that has just died is still in it
        for group in made:
            cgroup.remove(group)
        if time.monotonic() > end:
            break
        time.sleep(0.01)


def _state_folder(options: list[str], id: str) -> str:
    """Where the next runtime keeps what it knows of a container: below its --root, or runc's own."""
    root = "/run/runc"
    for number, word in enumerate(options):
        if word.lstrip("-").startswith("root="):
            root = word.partition("=")[2]
        elif word in ("--root", "-root") and number + 1 < len(options):
            root = options[number + 1]
    return f"{root.rstrip('/')}/{id.replace('/', '_')}"


def _mounts_below(root: str) -> list[str]:
    """Mounts that a killed restore left on a bundle's rootfs, above the caller's own, newest first."""
    points = []
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            point = line.split()[4].encode().decode("unicode_escape")
            if point == root or point.startswith(root + "/"):
                points.append(point)
    if root in points:
        points.remove(root)  # the first one there is the caller's
    return points[::-1]


def _with_variable(wanted: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted.encode() in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                continue
    return found


def _descendants(pids: list[int]) -> list[int]:
    """`pids` and everything below them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
            except OSError:
                continue
    found, left = [], list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.append(pid)
            left.extend(children.get(pid, []))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
