"""podman with our runtime: what it runs, exports and imports, on both nodes and from each to the other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.testbed import Node, ask, ready, until

SHIM = ["podman", "--runtime", "/usr/bin/grit-runtime"]
IMAGE = "localhost/workload"
FOLDER, BASE = "/tmp/podman", "/var/lib/grit/podman"
EXPORT = f"{FOLDER}/pod.tar"
WORKLOAD = ["--cap-add", "SYS_ADMIN", "--network", "none", "--env", "GRIT_MEMORY=16", IMAGE]
COUNT = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; /bin/busybox usleep 50000; done"


@pytest.fixture(autouse=True)
def podman(nodes: tuple[Node, Node]) -> Iterator[None]:
    """Both nodes with the workload's image for podman, and without containers before and after."""
    for node in nodes:
        if node.run(["podman", "image", "exists", IMAGE], check=False).returncode:
            node.run(["podman", "load", "--quiet", "--input", "/srv/workload.tar"])
    yield
    for node in nodes:
        node.run([*SHIM, "rm", "--all", "--force", "--time", "0"])
        node.run(["rm", "-rf", FOLDER, BASE])
        assert leftovers(node) == []


def leftovers(node: Node) -> list[str]:
    """Cgroups of containers, and what we keep about them while they live."""
    found = node.run(["find", "/sys/fs/cgroup", "-type", "d", "-name", "libpod-*"]).stdout.splitlines()
    return found + [str(path) for kind in ("op", "held") for path in node.path(f"/run/grit-runtime/{kind}").glob("*")]


def inspect(node: Node, name: str, what: str) -> str:
    return node.run(["podman", "inspect", "--format", "{{.State." + what + "}}", name]).stdout.strip()


def pid(node: Node, name: str) -> int:
    return int(inspect(node, name, "Pid"))


def start(node: Node) -> int:
    """The full workload as the container `pod`, with something in its /dev/shm; its first process."""
    node.run([*SHIM, "run", "--detach", "--name", "pod", *WORKLOAD])
    first = pid(node, "pod")
    until("the workload is ready", lambda: ready(node, first))
    node.run([*SHIM, "exec", "pod", "sh", "-c", "echo kept >/dev/shm/note"])
    return first


def export(node: Node, name: str, *more: str) -> None:
    node.run(["mkdir", "-p", FOLDER])
    node.run([*SHIM, "container", "checkpoint", "--compress", "none", "--export", EXPORT, *more, name])


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)], ids=["a-to-b", "b-to-a"])
def test_an_export_goes_on_at_the_other_node(nodes: tuple[Node, Node], source: int, target: int) -> None:
    here, there = nodes[source], nodes[target]
    before = ask(here, start(here), "check")
    assert before["bad"] == [], before
    export(here, "pod")
    here.run([*SHIM, "rm", "pod"])
    here.push(FOLDER, there, FOLDER)
    there.run([*SHIM, "container", "restore", "--import", EXPORT])
    after = ask(there, pid(there, "pod"), "check")
    assert after["bad"] == [], after
    assert after["identity"] == before["identity"] and after["memory_sha256"] == before["memory_sha256"]
    assert after["counter"] > before["counter"] and after["counter_gap"] == 0
    # podman's own archive has no opaque folders: it deletes what the container made in one that it had replaced
    assert there.run([*SHIM, "exec", "pod", "ls", "/data/replaced"]).stdout == "made\n"
    assert there.run([*SHIM, "exec", "pod", "cat", "/dev/shm/note"]).stdout == "kept\n"
    assert "answered" in there.run(["podman", "logs", "pod"]).stdout
    there.run([*SHIM, "stop", "--time", "20", "pod"])
    assert inspect(there, "pod", "ExitCode") == "0"


def test_run_with_the_annotation(node: Node) -> None:
    before = ask(node, start(node), "check")
    export(node, "pod")
    node.run(["mkdir", "-p", "-m", "755", BASE])
    node.run(["tar", "-xf", EXPORT, "-C", BASE])
    again = [*SHIM, "run", "--detach", "--name", "again", "--annotation", f"grit.dev/checkpoint={BASE}", *WORKLOAD]
    node.run(again)
    after = ask(node, pid(node, "again"), "check")
    assert after["bad"] == [] and after["identity"] == before["identity"], after
    assert node.run([*SHIM, "exec", "again", "cat", "/dev/shm/note"]).stdout == "kept\n"
    node.run([*SHIM, "rm", "--force", "--time", "0", "again"])
    node.run(["truncate", "--size", "-1", f"{BASE}/checkpoint/pages-1.img"])
    refused = node.run(again, check=False)
    assert refused.returncode and " image-changed: " in refused.stderr


def test_leave_running_and_in_place(node: Node) -> None:
    first = start(node)
    before = ask(node, first, "check")
    export(node, "pod", "--leave-running")
    after = ask(node, first, "check")
    assert after["bad"] == [] and after["counter_gap"] == 0, after
    node.run([*SHIM, "container", "checkpoint", "pod"])
    node.run([*SHIM, "container", "restore", "pod"])
    again = ask(node, pid(node, "pod"), "check")
    assert again["bad"] == [] and again["identity"] == before["identity"], again


def test_shared_memory_is_that_of_the_dump(node: Node) -> None:
    """podman saves it after the dump, when a container that is left running has gone on."""
    count = "i=0; while :; do i=$((i+1)); echo $i >>/dev/shm/numbers; /bin/busybox usleep 500; done"
    node.run([*SHIM, "run", "--detach", "--name", "pod", "--network", "none", IMAGE, "sh", "-c", count])
    file = node.path(f"/proc/{pid(node, 'pod')}/root/dev/shm/numbers")
    until("it counts", lambda: file.exists() and len(file.read_text()) > 30)
    export(node, "pod", "--leave-running")
    node.run([*SHIM, "rm", "--force", "--time", "0", "pod"])
    node.run([*SHIM, "container", "restore", "--import", EXPORT])
    numbers = node.path(f"/proc/{pid(node, 'pod')}/root/dev/shm/numbers").read_text().split("\n")[:-1]
    assert numbers == [str(number + 1) for number in range(len(numbers))]


def test_a_terminal(node: Node) -> None:
    node.run([*SHIM, "run", "--detach", "--tty", "--name", "tty", "--network", "none", IMAGE, "sh", "-c", COUNT])
    until("it counts", lambda: len(logged(node)) > 3)
    export(node, "tty")
    last = logged(node)[-1]
    node.run([*SHIM, "rm", "tty"])
    node.run([*SHIM, "container", "restore", "--import", EXPORT])
    until("it goes on", lambda: logged(node)[-1:] > [last + 3])
    node.run([*SHIM, "kill", "--signal", "TERM", "tty"])
    node.run(["podman", "wait", "tty"])
    assert inspect(node, "tty", "ExitCode") == "7"


def logged(node: Node) -> list[int]:
    try:
        text = node.run(["podman", "logs", "tty"], timeout=30).stdout
    except subprocess.CalledProcessError:
        return []
    return [int(line) for line in text.split() if line.isdigit()]
