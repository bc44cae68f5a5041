"""Pods and their containers as a kubelet makes them, through CRI."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.testbed import ask, ready, until

from .client import Cri, CriError
from .messages import CONTAINER, EXITED, NODE, POD
from .wire import Message

#: what the kubelet asks to be masked
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
          "/proc/sched_debug", "/proc/scsi", "/sys/firmware"]  # fmt: skip
ATTACH = Path(__file__).with_name("attach.py").read_text()
PEER = ["/usr/bin/python3", "-I", "-S", "-c", Path(__file__).with_name("peer.py").read_text()]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


class Pod:
    """A pod whose sandbox runs. `cri.call` errors are CriError. Remove it in the end, whatever happened."""

    def __init__(
        self, cri: Cri, name: str, *, annotations: Mapping[str, str] | None = None, hostname: str = "",
        shared_pid: bool = False, host: bool = False, handler: str = "grit",
    ) -> None:  # fmt: skip
        self.cri, self.node, self.name = cri, cri.node, name
        self.uid = secrets.token_hex(8)
        self.folder = f"{self.node.recipe.kubelet}/pods/{self.uid}"
        self.logs = f"/var/log/pods/default_{name}_{self.uid}"
        self.namespaces = {"network": POD, "pid": POD if shared_pid else CONTAINER, "ipc": POD}
        if host:  # hostNetwork, hostPID, hostIPC
            self.namespaces = dict.fromkeys(self.namespaces, NODE)
        self.config: Message = {
            "metadata": {"name": name, "uid": self.uid, "namespace": "default"},
            "hostname": "" if host else hostname or name,
            "log_directory": self.logs,
            "labels": {"io.kubernetes.pod.name": name},
            "annotations": dict(annotations or {}),
            "linux": {
                "cgroup_parent": f"{self.node.recipe.cgroup_parent}/pod{self.uid}",
                "security_context": {"namespace_options": self.namespaces},
            },
        }
        self.node.path(self.logs).mkdir(parents=True, exist_ok=True)
        self.node.write(f"{self.folder}/etc-hosts", f"127.0.0.1 localhost\n127.0.0.1 {name}\n")
        try:
            answer = cri.call("RunPodSandbox", config=self.config, runtime_handler=handler)
        except CriError:
            self._remove_groups()
            raise
        self.id: str = answer["pod_sandbox_id"]
        self.containers: list[Container] = []

    def status(self) -> Message:
        answer = self.cri.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=1)
        return {**answer["status"], "info": json.loads(answer["info"]["info"])}

    @property
    def address(self) -> str:
        return str(self.status()["network"]["ip"])

    @property
    def pid(self) -> int:
        """Of its pause process, as the node sees it."""
        return int(self.status()["info"]["pid"])

    def create(self, name: str, *, attempt: int = 0, **more: Any) -> Container:
        """A container that isn't started; see Container."""
        container = Container(self, name, attempt, **more)
        self.containers.append(container)
        return container

    def start(self, name: str, **more: Any) -> Container:
        """A container that runs; one of the image `workload` with its own program is set up."""
        container = self.create(name, **more)
        container.start()
        return container

    def peer(self, name: str = "peer", **more: Any) -> Container:
        """A container that runs the program of peer.py."""
        return self.start(name, command=PEER, env={"ADDRESS": self.address}, **more)

    def told(self) -> dict[str, Any]:
        """What the peer says, asked over the pod's network from the node."""
        talk = f"import socket; print(socket.create_connection(({self.address!r}, 8000), 20).makefile().readline())"
        answer = until("an answer from the peer", lambda: self.node.run(["python3", "-c", talk], check=False).stdout)
        found: dict[str, Any] = json.loads(answer)
        return found

    def remove(self) -> None:
        """Ends and removes all of it, as the kubelet does with a pod that is gone. Twice is fine."""
        until(f"{self.node.name}: the end of pod {self.name}", self._stop, 60)
        self.cri.call("RemovePodSandbox", pod_sandbox_id=self.id)
        self._remove_groups()

    def _stop(self) -> bool:
        """containerd 1.7 may say "ttrpc: closed" of a container whose shim is just ending; the kubelet tries again."""
        try:
            self.cri.call("StopPodSandbox", pod_sandbox_id=self.id)
        except CriError as error:
            if "ttrpc: closed" in error.message:
                return False
            raise
        return True

    def _remove_groups(self) -> None:
        """The pod's own cgroups are the kubelet's to make and to remove; one that is left shows a leak."""
        wanted = self.config["linux"]["cgroup_parent"].strip("/")
        top = self.node.path("/sys/fs/cgroup")
        places = [(top, "/sys/fs/cgroup"), *((path, f"/sys/fs/cgroup/{path.name}") for path in top.iterdir())]
        found = [f"{inside}/{wanted}" for path, inside in places if (path / wanted).is_dir()]
        self.node.run(["rmdir", *found], check=False)


class Container:
    """A container of a pod, created. It runs `command`, or the image's own program."""

    def __init__(
        self, pod: Pod, name: str, attempt: int, *, image: str = "workload", command: Sequence[str] = (),
        env: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None, tty: bool = False,
        restarts: int | None = None, memory: int = 0,
    ) -> None:  # fmt: skip
        self.pod, self.cri, self.node, self.name = pod, pod.cri, pod.node, name
        self.command, self.waits = list(command), image == "workload" and not command
        self.log = f"{pod.logs}/{name}/{attempt}.log"
        self.node.path(f"{pod.logs}/{name}").mkdir(exist_ok=True)
        self.node.write(f"{pod.folder}/{name}-termination-log", "", 0o666)
        notes = {} if restarts is None else {"io.kubernetes.container.restartCount": str(restarts)}
        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": f"docker.io/library/{image}:latest", "named": f"docker.io/library/{image}:latest"},
            "command": self.command,
            "envs": [{"key": key, "value": value} for key, value in (env or {}).items()],
            "mounts": [
                {"container_path": "/etc/hosts", "host_path": f"{pod.folder}/etc-hosts"},
                {"container_path": "/dev/termination-log", "host_path": f"{pod.folder}/{name}-termination-log"},
            ],
            "labels": {"io.kubernetes.container.name": name},
            "annotations": {**notes, **(annotations or {})},
            "log_path": f"{name}/{attempt}.log",
            "tty": tty,
            "stdin": tty,
            "linux": {
                "resources": {"memory_limit": memory} if memory else {},
                "security_context": {
                    "capabilities": {"add": ["SYS_ADMIN"]},  # the workload's fanotify
                    "namespace_options": pod.namespaces,
                    "masked_paths": MASKED,
                    "readonly_paths": READONLY,
                },
            },
        }
        answer = self.cri.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        self.id: str = answer["container_id"]

    def start(self, timeout: float = 110) -> None:
        """StartContainer, within the kubelet's two minutes. CriError if it fails."""
        self.cri.call("StartContainer", timeout, container_id=self.id)
        if self.waits:
            until(f"{self.node.name}: the workload of {self.name}", self._ready, 120)

    def _ready(self) -> bool:
        if self.status()["state"] == EXITED:
            raise RuntimeError(f"{self.node.name}: {self.name} ended: {self.status()}: {self.output()[-4000:]}")
        return ready(self.node, self.pid)

    def status(self) -> Message:
        answer = self.cri.call("ContainerStatus", container_id=self.id, verbose=1)
        status: Message = {"state": 0, "exit_code": 0, **answer["status"]}
        return {**status, "info": json.loads(answer["info"]["info"])}

    @property
    def pid(self) -> int:
        """Its first process, as the node sees it."""
        return int(self.status()["info"]["pid"])

    def ask(self, question: str = "check", timeout: float = 60) -> dict[str, Any]:
        return ask(self.node, self.pid, question, timeout)

    def exec(self, *argv: str) -> str:
        """What `argv` says in the container; an AssertionError if it fails."""
        answer = self.cri.call("ExecSync", 60, container_id=self.id, cmd=list(argv), timeout=50)
        assert answer.get("exit_code", 0) == 0, (argv, answer)
        out: bytes = answer.get("stdout", b"")
        return out.decode()

    def attach(self, line: str, wanted: str) -> str:
        """Sends `line` to its stdin and waits for `wanted` from it; what came. For a container with a terminal."""
        answer = self.cri.call("Attach", container_id=self.id, stdin=1, tty=1, stdout=1)
        return self.node.run(["python3", "-c", ATTACH, answer["url"], line, wanted]).stdout

    def output(self) -> str:
        """What it wrote, out of the log that containerd writes for the kubelet."""
        place = self.node.path(self.log)
        lines = place.read_text(errors="replace").splitlines() if place.exists() else []
        return "".join(line.split(" ", 3)[-1] + "\n" for line in lines)

    def stop(self, timeout: int = 0) -> None:
        self.cri.call("StopContainer", container_id=self.id, timeout=timeout)

    def remove(self) -> None:
        self.cri.call("RemoveContainer", container_id=self.id)
        self.pod.containers.remove(self)

    def wait_end(self, timeout: float = 60) -> Message:
        """Its status, once it has ended."""
        until(f"{self.name}: its end", lambda: self.status()["state"] == EXITED, timeout)
        return self.status()

    def checkpoint(self, folder: str) -> None:
        """As an agent on the node does it: the task is dumped into <folder>/<name>/checkpoint, and ends."""
        images = f"{folder}/{self.name}/checkpoint"
        self.node.path(images).mkdir(parents=True, exist_ok=True)
        self.node.ctr("-n", "k8s.io", "tasks", "checkpoint", "--exit", "--image-path", images, self.id, timeout=180)

    def error_of_start(self) -> str:
        """Starts it where that must fail; containerd's words."""
        try:
            self.cri.call("StartContainer", 110, container_id=self.id)
        except CriError as error:
            return error.message
        raise AssertionError(f"{self.name} was started")
