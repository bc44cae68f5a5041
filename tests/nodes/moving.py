"""What the tests of the flows share: containers by hand, what an operation left, and faults at a stage of CRIU's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.testbed import CommandFailed, Container, Node, until
from tests.testbed.container import ask, ready

CHAIN = "/etc/nvidia-container-runtime/config.toml"

#: the next runtime's state folder under containerd and ctr
CONTAINERD = "/run/containerd/runc/default"
BY_HAND = "/run/by-hand"
ACTION = "/usr/libexec/grit-runtime/criu-action"
SMALL = {"GRIT_MEMORY": "4"}
Spec = dict[str, Any]


def base(name: str) -> str:
    """Where a test's checkpoint lies: the container's own folder is in it, as GRIT lays it out."""
    return f"/var/lib/grit/{name}"


def images(name: str) -> str:
    return f"{base(name)}/{name}/checkpoint"


def annotation(name: str) -> dict[str, str]:
    return {"grit.dev/checkpoint": f"{base(name)}/{name}"}


def move(container: Container, name: str, target: Node) -> None:
    """Checkpoint, delete, and copy the checkpoint to `target`, whose own old copy goes."""
    node = container.node
    node.run(["rm", "-rf", base(name)])
    container.checkpoint(images(name))
    container.delete()
    if target is not node:
        target.run(["rm", "-rf", base(name)])
        node.push(base(name), target, base(name))


def well(answer: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> bool:
    """The full workload goes on as it was: all of it, and as the same process."""
    assert answer["bad"] == [], answer
    assert answer["counter_gap"] == 0 and answer["watches_same_number"] == 6 and answer["watches_delivering"] == 4
    assert answer["fanotify_delivers"] and answer["timer_ticking"] and answer["tcp_alive"]
    assert answer["driver_files"] == 1
    if before:
        assert answer["identity"] == before["identity"] and answer["counter"] > before["counter"]
    return True


def record(node: Node, id: str) -> dict[str, Any]:
    """What was kept of the latest operation on container `id`: record.json, with the names of its logs in `logs`."""
    kept = list(node.path(f"/var/lib/grit-runtime/logs/{id}").glob("*/record.json"))
    assert kept, f"nothing was kept of {id}"
    last = max(kept, key=lambda path: path.stat().st_mtime_ns)
    content: dict[str, Any] = json.loads(last.read_text())
    return {**content, "logs": sorted(path.name for path in last.parent.glob("*.log"))}


def reason(text: str) -> str:
    """The stable name of the refusal in an error of ours, wherever containerd has put it."""
    found = re.search(r"grit-runtime: ([a-z-]+): ", text)
    return found[1] if found else f"no reason in: {text}"


def remains(node: Node, id: str, *, lives: bool = False, but: int = 0) -> list[str]:
    """What an operation on `id` left: operations, locks, marks, cgroups, mounts, states, processes. With `lives` the
    container is to be there, and only what is the operation's own counts; `but` is another that lives."""
    found = [str(path) for kind in ("op", "lock", "held") for path in node.path(f"/run/grit-runtime/{kind}").glob("*")]
    mounts = node.path("/proc/1/mountinfo").read_text().splitlines()
    found += [line for line in mounts if " /run/grit-runtime" in line or "criu" in line.split()[4]]
    ours = ("criu", "grit-guardian")
    found += [line for line in processes(node) if line.split()[1] in ours or "grit_runtime" in line]
    if not lives:
        found += [line for line in mounts if id in line.split()[4] and not line.split()[4].endswith("/rootfs")]
        found += node.run(["find", "/sys/fs/cgroup", "-type", "d", "-name", id]).stdout.split()
        states = (f"{CONTAINERD}/{id}", f"{BY_HAND}/{id}")
        found += [state for state in states if node.path(state).exists()]
        found += [line for line in processes(node) if "/workload/workload.py" in line and not _is_of(node, line, but)]
    return found


def _is_of(node: Node, line: str, pid: int) -> bool:
    """Whether a process that ps shows is in the pid namespace of `pid`."""
    try:
        one = os.stat(node.path(f"/proc/{line.split()[0]}/ns/pid"))
    except FileNotFoundError:
        return True  # it has gone
    return bool(pid) and os.path.samestat(one, os.stat(node.path(f"/proc/{pid}/ns/pid")))


def nothing_remains(node: Node, id: str, *, lives: bool = False, but: int = 0) -> None:
    """A guardian may still be at work when the caller has its error."""
    try:
        until("the end of what an operation left", lambda: not remains(node, id, lives=lives, but=but), 30)
    except TimeoutError as error:
        raise AssertionError(f"{error}: {remains(node, id, lives=lives, but=but)}") from None


def processes(node: Node) -> list[str]:
    return node.run(["ps", "-eo", "pid=,comm=,args="]).stdout.splitlines()


def spec_of(container: Container) -> Spec:
    """The spec that containerd gave: before anything was injected into it."""
    spec: Spec = json.loads(container.node.ctr("containers", "info", "--spec", container.name))
    return spec


class Bundle:
    """A bundle by hand with an overlay of its own on the layers of `model`'s image, and grit-runtime called on it."""

    def __init__(self, node: Node, id: str, model: Container, edit: Callable[[Spec], None] = lambda spec: None) -> None:
        self.node, self.id, self.path = node, id, f"/var/lib/grit/bundles/{id}"
        self.pid = 0
        spec = spec_of(model)
        spec["linux"]["cgroupsPath"] = spec["linux"]["cgroupsPath"].replace(model.name, id)
        edit(spec)
        self.spec = spec
        for folder in ("rootfs", "upper", "work"):
            node.path(f"{self.path}/{folder}").mkdir(parents=True)
        lower = re.search(r"^\d+ \d+ \S+ / / .*lowerdir=([^,\s]+)",
                          node.path(f"/proc/{model.pid}/mountinfo").read_text(), re.MULTILINE)  # fmt: skip
        assert lower
        self.lower = lower[1]
        node.write(f"{self.path}/config.json", json.dumps(spec))
        self.mount()

    def mount(self) -> None:
        layers = f"lowerdir={self.lower},upperdir={self.path}/upper,workdir={self.path}/work"
        self.node.run(["mount", "-t", "overlay", "-o", layers, "overlay", f"{self.path}/rootfs"])

    def renew(self) -> None:
        """An empty rw layer and the spec as it was: what the next container gets."""
        self.node.run(["umount", f"{self.path}/rootfs"])
        self.node.run(["sh", "-c", f"cd {self.path} && rm -rf upper work && mkdir upper work"])
        self.node.write(f"{self.path}/config.json", json.dumps(self.spec))
        self.mount()

    def call(self, *words: str, check: bool = True, runtime: str = "grit-runtime") -> subprocess.CompletedProcess[str]:
        return self.node.run([runtime, "--root", BY_HAND, *words], check=check, timeout=120)

    def create(self, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._begun("create", check=check)

    def restore(self, images: str, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        where = ["--image-path", images, "--work-path", f"{self.path}/work-path"]
        return self._begun("restore", "--detach", *where, *more, check=check)

    def _begun(self, *words: str, check: bool) -> subprocess.CompletedProcess[str]:
        """Its stdout and stderr are files of the node, and so the container's: as a shell's redirection makes them."""
        shell = f'exec "$@" </dev/null >>{self.path}/out 2>>{self.path}/err'
        at = self.node.path(f"{self.path}/err")
        before = at.stat().st_size if at.exists() else 0
        words = ("grit-runtime", "--root", BY_HAND, *words, "--bundle", self.path)
        words = (*words, "--pid-file", f"{self.path}/pid", self.id)
        done = self.node.run(["sh", "-c", shell, "-", *words], check=False, timeout=120)
        done.stderr = at.read_text(errors="replace")[before:]
        if done.returncode == 0:
            self.pid = int(self.node.path(f"{self.path}/pid").read_text())
        elif check:
            raise CommandFailed(self.node.name, list(words), done.returncode, "", done.stderr)
        return done

    def status(self) -> str:
        return str(json.loads(self.call("state", self.id).stdout)["status"])

    def ask(self, question: str = "check") -> dict[str, Any]:
        return ask(self.node, self.pid, question)

    def wait_ready(self) -> None:
        until("the workload", lambda: ready(self.node, self.pid), 120)

    def close(self) -> None:
        self.call("delete", "--force", self.id, check=False)
        self.node.run(["umount", f"{self.path}/rootfs"], check=False)
        self.node.run(["rm", "-rf", self.path])


@contextlib.contextmanager
def bundle(node: Node, id: str, model: Container, edit: Callable[[Spec], None] = lambda spec: None) -> Iterator[Bundle]:
    one = Bundle(node, id, model, edit)
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def changed(node: Node, path: str, text: str) -> Iterator[None]:
    """A file of the node with another content for a while."""
    place = node.path(path)
    before, mode = place.read_text(), place.stat().st_mode & 0o7777
    node.write(path, text, mode)
    try:
        yield
    finally:
        node.write(path, before, mode)


#: What a fault does: the first of `owner` is grit-runtime's own process, and CRIU is the script's parent.
KILL_CRIU = "kill -9 $PPID; exit 1"
KILL_US = "for file in /run/grit-runtime/op/*/owner; do read -r owner <$file; kill -9 ${owner%%:*}; done"


@contextlib.contextmanager
def fault_at_stage(node: Node, stage: str, action: str) -> Iterator[None]:
    """`action` (shell) is done when CRIU reaches `stage`: its action script is another one for a while."""
    real = node.path(ACTION).read_text().partition("\n")[2]
    with changed(node, ACTION, f'#!/bin/sh\nif [ "$CRTOOLS_SCRIPT_ACTION" = {stage} ]; then {action}; fi\n{real}'):
        yield


@contextlib.contextmanager
def low_level(node: Node, script: str | None = None, *, runtime: str = "") -> Iterator[None]:
    """The node's low-level runtime for a while: `runtime`, or runc after `script` (on checkpoint and restore)."""
    program = runtime or "/usr/local/sbin/runc-with-fault"
    if script:
        case = f'case " $* " in *" checkpoint "*|*" restore "*) {script};; esac'
        node.write(program, f'#!/bin/sh\n{case}\nexec runc "$@"\n', 0o755)
    text = node.path(CHAIN).read_text()
    text = re.sub(r"runtimes = .*", f'runtimes = ["{program}"]', text)
    try:
        with changed(node, CHAIN, text):
            yield
    finally:
        if script:
            os.unlink(node.path(program))


@contextlib.contextmanager
def small(node: Node, options: str) -> Iterator[str]:
    """A folder for images in a tmpfs of its own, mounted with `options` for a while."""
    node.run(["mkdir", "-p", "/run/small"])
    node.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/run/small"])
    try:
        yield "/run/small/images"
    finally:
        node.run(["umount", "/run/small"])
