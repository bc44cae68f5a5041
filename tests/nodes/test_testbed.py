"""The testbed itself: real nodes that differ as nodes do, a workload that is as hard as it says, and nothing left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed import CommandFailed, Node, Testbed, until
from tests.testbed.recipe import NODE_A, NODE_B

CHECKOUT = Path(__file__).resolve().parents[2]


def test_nodes_are_what_issue_says(node_a: Node, node_b: Node) -> None:
    assert node_a.run(["cat", "/etc/debian_version"]).stdout.startswith("13")
    assert "containerd.io 1.7" in node_a.run(["containerd", "--version"]).stdout.replace("/containerd ", ".io ")
    assert "1.1" in node_a.run(["runc", "--version"]).stdout.splitlines()[0]
    assert "forky" in node_b.run(["cat", "/etc/debian_version"]).stdout
    assert "2.1" in node_b.run(["containerd", "--version"]).stdout
    assert "1.3" in node_b.run(["runc", "--version"]).stdout.splitlines()[0]
    for node in (node_a, node_b):
        assert "Version: 4." in node.run(["criu", "--version"]).stdout
        assert node.run(["hostname"]).stdout.strip() == node.name
        # our package came with apt, not by copying
        assert node.run(["dpkg-query", "-W", "-f", "${Status}", "grit-runtime"]).stdout == "install ok installed"
    assert not node_a.path("/sys/fs/cgroup/cgroup.procs").exists()
    assert node_b.path("/sys/fs/cgroup/cgroup.procs").exists()


def test_nodes_differ_and_reach_each_other(node_a: Node, node_b: Node) -> None:
    for field in ("address", "pods", "driver", "kubelet", "cgroup_parent", "devices", "cgroups"):
        assert getattr(NODE_A, field) != getattr(NODE_B, field)
    assert node_a.path(NODE_A.driver).is_dir() and not node_b.path(NODE_A.driver).exists()
    device = os.stat(node_a.path("/dev/nvidia0")).st_rdev
    assert device != os.stat(node_b.path("/dev/nvidia0")).st_rdev
    address = NODE_B.address.split("/")[0]
    talk = f"import socket; print(socket.create_connection(('{address}', 7000), 20).recv(9).decode())"
    listen = (
        f"import socket; s = socket.create_server(('{address}', 7000)); print(1, flush=True); s.accept()[0].send(b'hi')"
    )
    server = node_b.popen(["python3", "-c", listen], stdout=subprocess.PIPE)
    assert server.stdout and server.stdout.readline() == b"1\n"
    assert node_a.run(["python3", "-c", talk]).stdout == "hi\n"
    assert server.wait(20) == 0


@pytest.mark.parametrize("runtime", ["runc", "nvidia"])
def test_workload_without_us(node: Node, runtime: str) -> None:
    """The first row of the seed table: the workload is well, and CRIU alone cannot dump it; it lives on."""
    container = node.start("plain", runtime=runtime)
    try:
        before = container.ask("check")
        assert before["bad"] == [] and before["watches_delivering"] == 4 and before["memory_bytes"] == 256 << 20
        assert before["driver_files"] == (runtime == "nvidia")
        with pytest.raises(CommandFailed, match="criu failed"):
            container.checkpoint("/var/lib/grit/plain", leave_running=True)
        failure = re.search(r"Error \(criu/fsnotify.*", container.criu_log())
        assert failure and re.search(r"fsnotify:\s+Can't dump that handle", failure[0]), container.criu_log()[-3000:]
        assert container.ask("check")["bad"] == []
    finally:
        container.delete()
    assert node.leaks() == []


def test_standin_injects_as_the_real_one(node: Node) -> None:
    container = node.start("injected", image="busybox", runtime="nvidia")
    try:
        seen = container.exec("cat", "/proc/self/mountinfo")
        libraries = [line for line in seen.splitlines() if ".so.570.86.10" in line]
        assert len(libraries) == 24 and "/run/nvidia-ctk-hook" in seen and "/proc/misc" in seen
        link = container.path("/usr/lib/x86_64-linux-gnu/libcuda.so")
        assert os.readlink(link) == "libcuda.so.1"
        assert os.stat(container.path("/dev/nvidia0")).st_rdev == os.stat(node.path("/dev/nvidia0")).st_rdev
    finally:
        container.delete()
    plain = node.start("void", image="busybox", runtime="nvidia", env={"NVIDIA_VISIBLE_DEVICES": "void"})
    try:
        assert "570" not in plain.exec("cat", "/proc/self/mountinfo")
    finally:
        plain.delete()
    assert node.leaks() == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_an_interrupted_run(end: signal.Signals) -> None:
    """A run of its own, whose process is ended while a container lives in it and another is frozen."""
    program = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a CI may have started us with SIGINT ignored
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
from tests.testbed import Testbed
with Testbed() as bed:
    for node in bed.nodes:
        node.start("left", image="busybox", runtime="runc")
        node.start("frozen", image="busybox", runtime="runc")
        node.ctr("tasks", "pause", "frozen")
    print(bed.tag, *bed.members(), flush=True)
    signal.pause()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=CHECKOUT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert child.stdout
        tag, *members = child.stdout.readline().decode().split()
        assert len(members) > 8
        child.send_signal(end)
        assert child.wait(120) != 0
    finally:
        child.kill()
        child.wait()
    from tests.testbed import runs

    until("the guard's work", lambda: not runs.leaks(tag), 60)
    until("the end of all its processes", lambda: not any(Path(f"/proc/{pid}").exists() for pid in members), 30)


def test_second_up_cleans_what_a_killed_guard_left() -> None:
    from tests.testbed import runs

    program = """
import signal
from tests.testbed import Testbed
bed = Testbed()
bed.up()
print(bed.tag, bed.run.guard_pid, flush=True)
signal.pause()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=CHECKOUT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert child.stdout
    tag, guard = child.stdout.readline().decode().split()
    os.kill(int(guard), signal.SIGKILL)
    child.kill()
    child.wait()
    assert runs.leaks(tag)
    until("the guard's end", lambda: not runs.alive(tag), 30)
    with Testbed():
        assert runs.leaks(tag) == []
