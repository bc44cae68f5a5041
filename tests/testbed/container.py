"""A container under containerd, and talking to the workload in it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .node import CommandFailed, until
from .settings import RUNTIMES

if TYPE_CHECKING:
    from .node import Node

#: where the workload is talked to, in its container
TALK = "run/workload"


def ask(node: Node, pid: int, question: str, timeout: float = 60, **arguments: object) -> dict[str, Any]:
    """Asks the workload whose first process is `pid` in the node. RuntimeError with its words if it cannot answer.

    The talk goes through files below /run of the container, polled by the workload, so that nothing of it is in the way
    of a checkpoint.
    """
    folder = node.path(f"/proc/{pid}/root/{TALK}")
    number = f"{time.monotonic_ns()}-{os.getpid()}"
    answer = folder / f"answer-{number}"
    (folder / f"new-{number}").write_text(json.dumps({"question": question, **arguments}))
    (folder / f"new-{number}").rename(folder / f"ask-{number}")

    def given() -> str | None:
        try:
            return answer.read_text()
        except FileNotFoundError:
            if not folder.exists():
                raise RuntimeError(f"{node.name}: process {pid} is gone before it answered {question}") from None
            return None

    text = until(f"{node.name}: an answer to {question}", given, timeout)
    answer.unlink()
    found: dict[str, Any] = json.loads(text)
    if "error" in found:
        raise RuntimeError(f"{node.name}: the workload could not answer {question}: {found['error']}")
    return found


def ready(node: Node, pid: int) -> bool:
    """Whether the workload has set up all its parts."""
    return node.path(f"/proc/{pid}/root/{TALK}/ready").exists()


class Container:
    """A container of containerd's namespace "default"."""

    def __init__(self, node: Node, name: str, image: str) -> None:
        self.node, self.name, self.image = node, name, image

    def status(self) -> tuple[int, str]:
        """Pid in the node and state (RUNNING, STOPPED, PAUSED, CREATED) of its task; (0, "") if there is none."""
        for line in self.node.ctr("tasks", "ls").splitlines()[1:]:
            words = line.split()
            if words[:1] == [self.name]:
                return int(words[1]), words[2]
        return 0, ""

    @property
    def pid(self) -> int:
        """Its first process, as the node sees it. RuntimeError if it doesn't live."""
        pid, status = self.status()
        if not pid or status == "STOPPED":
            raise RuntimeError(f"{self.node.name}: {self.name} has no process ({status or 'no task'}): {self.output()}")
        return pid

    def path(self, path: str) -> Path:
        """The place on this machine of a file of the container."""
        return self.node.path(f"/proc/{self.pid}/root/{path.lstrip('/')}")

    def output(self) -> str:
        """What it wrote to stdout and stderr."""
        place = self.node.path(log_of(self.name))
        return place.read_text(errors="replace") if place.exists() else ""

    def wait_ready(self, timeout: float = 120) -> None:
        """Waits until the workload is set up. RuntimeError with its output if it ended."""

        def there() -> bool:
            pid, status = self.status()
            if status == "STOPPED" or not pid:
                raise RuntimeError(f"{self.node.name}: {self.name} ended: {self.output()[-4000:]}")
            return ready(self.node, pid)

        until(f"{self.node.name}: the workload of {self.name}", there, timeout)

    def ask(self, question: str = "check", timeout: float = 60, **arguments: object) -> dict[str, Any]:
        return ask(self.node, self.pid, question, timeout, **arguments)

    def checkpoint(self, folder: str, leave_running: bool = False, timeout: float = 180) -> None:
        """`ctr tasks checkpoint --image-path FOLDER` (of the node; it is made); CommandFailed if it fails."""
        self.node.path(folder).mkdir(parents=True, exist_ok=True)
        stay = [] if leave_running else ["--exit"]
        self.node.ctr("tasks", "checkpoint", *stay, "--image-path", folder, self.name, timeout=timeout)

    def criu_log(self, which: str = "dump") -> str:
        """CRIU's log of the last failed `dump` or `restore`, which containerd keeps in the bundle; "" if none."""
        bundle = self.node.path(f"/run/containerd/io.containerd.runtime.v2.task/default/{self.name}")
        for place in (bundle / f"criu-{which}.log", bundle / "work" / f"{which}.log"):
            if place.exists():
                return place.read_text(errors="replace")
        return ""

    def delete(self) -> None:
        """Kills it if it lives, and removes task, container and snapshot."""
        self.node.ctr("tasks", "kill", "-s", "SIGKILL", self.name, check=False)
        try:
            until(f"{self.name}: its end", lambda: self.status()[1] in ("", "STOPPED", "CREATED"), 30)
        finally:
            self.node.ctr("tasks", "rm", "-f", self.name, check=False)
            self.node.ctr("containers", "rm", self.name, check=False)

    def exec(self, *argv: str, timeout: float = 60) -> str:
        """`ctr tasks exec`; its stdout."""
        return self.node.ctr("tasks", "exec", "--exec-id", f"x{time.monotonic_ns()}", self.name, *argv, timeout=timeout)


def log_of(name: str) -> str:
    return f"/var/log/containers/{name}.log"


def start(
    node: Node,
    name: str,
    image: str,
    runtime: str,
    annotations: Mapping[str, str],
    env: Mapping[str, str],
    args: Sequence[str],
    options: Sequence[str],
    wait: bool,
) -> Container:
    """`ctr run -d`. `runtime` is a name of settings.RUNTIMES or a path; `args` replaces the image's command.

    Through grit and nvidia it asks for GPUs (NVIDIA_VISIBLE_DEVICES=all) unless `env` says otherwise. It gets the binds
    that a kubelet makes, from this node's places. With `wait`, and an image `workload`, it is set up when this returns.
    CommandFailed if ctr fails: then nothing of it is left in containerd.
    """
    pod = f"{node.recipe.kubelet}/pods/{name}"
    node.write(f"{pod}/etc-hosts", f"127.0.0.1 localhost\n127.0.0.1 {name}\n")
    node.write(f"{pod}/termination-log", "", 0o666)
    node.write(log_of(name), "")
    words = ["run", "-d", "--runtime", "io.containerd.runc.v2", "--runc-binary", RUNTIMES.get(runtime, runtime)]
    words += ["--log-uri", f"file://{log_of(name)}", "--cgroup", f"{node.recipe.cgroup_parent}/{name}"]
    for source, target in ((f"{pod}/etc-hosts", "/etc/hosts"), (f"{pod}/termination-log", "/dev/termination-log")):
        words += ["--mount", f"type=bind,src={source},dst={target},options=rbind:rw"]
    if "cpu" not in controllers(node):
        words += ["--cpu-shares", "0"]  # ctr asks for 1024, for which there is no file then
    if image == "workload":
        words += ["--cap-add", "CAP_SYS_ADMIN"]  # fanotify
    gpus = {"NVIDIA_VISIBLE_DEVICES": "all"} if runtime in ("grit", "nvidia") else {}
    for key, value in {**gpus, **env}.items():
        words += ["--env", f"{key}={value}"]
    for key, value in annotations.items():
        words += ["--annotation", f"{key}={value}"]
    container = Container(node, name, image)
    try:
        node.ctr(*words, *options, f"docker.io/library/{image}:latest", name, *args, timeout=180)
    except CommandFailed:
        container.delete()
        raise
    if wait and image == "workload" and not args:
        container.wait_ready()
    return container


def controllers(node: Node) -> list[str]:
    """The controllers that the node's containers have; on a unified node whose host has version 1 there is none."""
    if node.recipe.cgroups == "unified":
        return node.path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    return [path.name for path in node.path("/sys/fs/cgroup").iterdir()]


def leaks(node: Node) -> list[str]:
    """What containers left in a node, when all of them have been deleted."""
    ours = ("containerd-shim", "runc", "crun", "criu", "grit-runtime", "gritctl")
    processes = node.run(["ps", "-eo", "pid=,comm=,args="]).stdout.splitlines()
    left = [f"process {line.strip()}" for line in processes if line.split()[1].startswith(ours)]
    left += [
        f"mount {line.split()[4]}"
        for line in node.path(f"/proc/{1}/mountinfo").read_text().splitlines()
        if line.split()[4].startswith(("/run/containerd/io.containerd", "/run/grit-runtime", "/run/nvidia-ctk-hook"))
    ]
    parent = node.recipe.cgroup_parent.strip("/")
    for folder in (node.path("/sys/fs/cgroup"), *node.path("/sys/fs/cgroup").iterdir()):
        if (folder / parent).is_dir():
            left += [f"cgroup {child}" for child in (folder / parent).iterdir() if child.is_dir()]
    return left
