"""Pods through containerd's CRI on both nodes: what a kubelet does, and a restore by the pod's annotation."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.nodes.cri import Container, Cri, Pod
from tests.nodes.cri.kept import METRICS, configured, records
from tests.nodes.cri.messages import EXITED, RUNNING
from tests.testbed import Node, Testbed, until

SMALL = {"GRIT_MEMORY": "16"}
Make = Callable[..., Pod]


@pytest.fixture
def pods(testbed: Testbed) -> Iterator[Make]:
    """Makes pods: pods(node, name, checkpoint=BASE). They are removed afterwards, and nothing of them may be left."""
    cris = {node: Cri(node) for node in testbed.nodes}
    made: list[Pod] = []

    def make(node: Node, name: str, checkpoint: str = "", shared_pid: bool = False, host: bool = False) -> Pod:
        notes: Mapping[str, str] = {"grit.dev/checkpoint": checkpoint} if checkpoint else {}
        made.append(Pod(cris[node], name, annotations=notes, shared_pid=shared_pid, host=host))
        return made[-1]

    with configured(*testbed.nodes, metrics=f'"{METRICS}"', wait="20"):
        for node in testbed.nodes:
            node.path(METRICS).mkdir(parents=True, exist_ok=True)
        try:
            yield make
        finally:
            for pod in made:
                pod.remove()
            for node, cri in cris.items():
                cri.close()
                node.run(["sh", "-c", "rm -rf /var/lib/grit/*"])
    assert [leak for node in testbed.nodes for leak in node.leaks()] == []
    assert not [mark for node in testbed.nodes for mark in node.path("/run/grit-runtime/used").glob("*")]


@pytest.mark.parametrize("first", ["node-a", "node-b"])
def test_two_containers_move_and_move_back(testbed: Testbed, pods: Make, first: str) -> None:
    here, there = testbed.nodes if first == "node-a" else testbed.nodes[::-1]
    pod = pods(here, "origin")
    main, peer = pod.start("main", env=SMALL), pod.peer()
    now = told = pod.told()
    identity = main.ask("identity")["identity"]
    assert told["connection"] == told["loopback"] == "alive"
    sandbox = json.loads(
        here.path(f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{pod.id}/config.json").read_text()
    )
    assert "org.criu.config" not in sandbox["annotations"], "the sandbox passes untouched"

    for node, name in ((there, "second"), (here, "third")):
        base = f"/var/lib/grit/{name}"
        main.checkpoint(base)
        peer.checkpoint(base)
        assert main.wait_end() and peer.wait_end()
        dumped = records(pod.node, main.id)[-1]
        assert (dumped["operation"], dumped["result"]) == ("dump", "ok") and "dump.log" in dumped["kept"]
        counted, address = now["counter"], pod.address
        pod.node.push(base, node, base)
        pod = pods(node, name, base)
        main, peer = pod.start("main", env=SMALL), pod.peer()
        node.restart_containerd()
        as_any_other(pod, main, peer)
        assert main.ask("identity")["identity"] == identity and main.ask()["bad"] == []
        now = pod.told()
        assert pod.address != address and now["connection"] not in ("alive", "closed")
        assert (now["started"], now["loopback"], now["segment"], now["semaphore"]) == (
            told["started"],
            "alive",
            True,
            7,
        )
        assert counted < now["counter"]
        kept(node, main)

    main.stop(timeout=30)
    status = main.status()
    assert (status["state"], status["exit_code"]) == (EXITED, 0), "it ends by its own handler of SIGTERM"
    peer.node.run(["kill", "-KILL", str(peer.pid)])
    assert peer.wait_end()["exit_code"] == 128 + signal.SIGKILL
    main.remove()


def as_any_other(pod: Pod, *containers: Container) -> None:
    """exec, logs, stats, the pod's hostname and /dev/shm."""
    for container in containers:
        assert container.exec("hostname") == f"{pod.name}\n"
        assert container.exec("ls", "/dev/shm") == "counter\n"
        assert container.status()["state"] == RUNNING
        assert "stats" in pod.cri.call("ContainerStats", container_id=container.id)
        assert "ready" not in container.output(), "it goes on where it was"
    main, peer = containers
    main.ask("identity")
    until("a line in the log", lambda: "answered" in main.output())
    before = pod.told()["counter"]
    code = "import sys; sys.stdout.write(str(int.from_bytes(open('/dev/shm/counter', 'rb').read(8), 'little')))"
    until("the peer's counter, seen by the other", lambda: int(main.exec("python3", "-c", code)) > before)


def kept(node: Node, container: Container) -> None:
    """One record, CRIU's log, and numbers for the node exporter."""
    (record,) = records(node, container.id)
    assert (record["operation"], record["result"]) == ("restore", "ok")
    assert {"compare", "rootfs", "criu"} <= set(record["phases"]) and "restore.log" in record["kept"]
    numbers = node.path(f"{METRICS}/grit-runtime.prom").read_text()
    assert 'grit_runtime_operations_total{operation="restore",result="ok",reason=""}' in numbers


#: takes all PIDs up to a number, and gives them back when it is stopped (the pods' pause program here reaps nobody)
TAKER = """
import os, signal, sys
pids = [0]
while pids[-1] < int(sys.argv[1]):
    pids.append(os.fork())
    if not pids[-1]:
        signal.pause()
def end(*_):
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
"""


def test_pid_namespace_of_the_pod(node: Node, pods: Make) -> None:
    """Restored with the PIDs that they had, or refused by name; then tried again, as the kubelet does."""
    pod = pods(node, "origin", shared_pid=True)
    main, peer = pod.start("main", env=SMALL), pod.peer()
    seen = main.ask("identity")
    told = pod.told()
    assert seen["pid"] > 1
    main.checkpoint("/var/lib/grit/shared")
    peer.checkpoint("/var/lib/grit/shared")
    pod.remove()

    pod = pods(node, "shared", "/var/lib/grit/shared", shared_pid=True)
    # a container that the kubelet has restarted, so it is not restored itself
    taker = pod.start("taker", command=["/usr/bin/python3", "-c", TAKER, str(seen["pid"] + 50)], restarts=1)
    until("its PIDs", lambda: "ready" in taker.output())
    again = pod.create("main", env=SMALL)
    assert "pid-in-use" in again.error_of_start()
    (record,) = records(node, again.id)
    assert (record["result"], record["reason"]) == ("refused", "pid-in-use")
    again.remove()
    taker.stop(timeout=30)
    taker.remove()
    main, peer = pod.start("main", attempt=1, restarts=1, env=SMALL), pod.peer()
    assert main.ask()["bad"] == [] and main.ask("identity")["identity"] == seen["identity"]
    assert (pod.told()["started"], pod.told()["segment"]) == (told["started"], True)


def test_namespaces_of_the_node(node: Node, pods: Make) -> None:
    """hostNetwork, hostPID and hostIPC: containerd names the sandbox's namespaces, which are the node's."""
    pod = pods(node, "origin", host=True)
    main = pod.start("main", env=SMALL)
    seen = main.ask("identity")
    node.write("/dev/shm/somebodys", "secret")
    try:
        main.checkpoint("/var/lib/grit/host")
    finally:
        node.path("/dev/shm/somebodys").unlink()
    assert not list(node.path("/var/lib/grit/host").glob("**/shm.tar")), "the node's /dev/shm is not the container's"
    pod.remove()
    main = pods(node, "host", "/var/lib/grit/host", host=True).start("main", env=SMALL)
    assert main.ask()["bad"] == [] and main.ask("identity")["identity"] == seen["identity"]
    assert (main.exec("hostname"), node.run(["hostname"]).stdout) == (f"{node.name}\n", f"{node.name}\n")
    assert main.pid == seen["pid"], "it is among the node's processes"


def test_failed_restore_is_tried_again(node: Node, pods: Make) -> None:
    """CRIU itself fails: nothing of it may stay in the pod, so that the next try finds it as it was."""
    pod = pods(node, "origin")
    peer = pod.peer()
    told = pod.told()
    peer.checkpoint("/var/lib/grit/again")
    pod.remove()

    pod = pods(node, "again", "/var/lib/grit/again")
    listen = "import socket, signal; s = socket.create_server(('', 8000)); print(1, flush=True); signal.pause()"
    inside = ["nsenter", "-t", str(pod.pid), "-n", "-i", "-u"]
    blocker = node.popen([*inside, "python3", "-c", listen], stdout=-1)
    try:
        assert blocker.stdout and blocker.stdout.readline() == b"1\n"
        failed = pod.create("peer", command=peer.command)
        assert "restore-failed" in failed.error_of_start()
    finally:
        os.killpg(blocker.pid, signal.SIGKILL)
        blocker.wait(30)
    (record,) = records(node, failed.id)
    assert record["result"] == "failed" and "restore.log" in record["kept"], record
    assert node.run([*inside, "hostname"]).stdout == "again\n"
    for kind in ("shm", "sem"):
        assert len(node.run([*inside, "cat", f"/proc/sysvipc/{kind}"]).stdout.splitlines()) == 1
    failed.remove()
    pod.peer(attempt=1, restarts=1)
    now = pod.told()
    assert (now["started"], now["segment"], now["semaphore"]) == (told["started"], True, 7)


@pytest.mark.parametrize("restarts", [1, None], ids=["counted", "uncounted"])
def test_restarted_container_is_not_restored_again(node: Node, pods: Make, restarts: int | None) -> None:
    pod = pods(node, "origin")
    peer, told = pod.peer(), pod.told()
    peer.checkpoint("/var/lib/grit/once")
    pod.remove()
    pod = pods(node, "once", "/var/lib/grit/once")
    peer = pod.peer(restarts=0 if restarts else None)
    assert pod.told()["started"] == told["started"]
    node.run(["kill", "-KILL", str(peer.pid)])
    peer.wait_end()
    peer.remove()
    again = pod.peer(attempt=1, restarts=restarts)
    assert pod.told()["started"] != told["started"] and "ready" in again.output()
    mark = node.path(f"/run/grit-runtime/used/{pod.id}")
    assert mark.is_dir()
    pod.remove()
    assert not mark.exists()


def test_terminal(node: Node, pods: Make) -> None:
    pod = pods(node, "origin")
    peer = pod.peer(tty=True)
    told = pod.told()
    peer.checkpoint("/var/lib/grit/terminal")
    pod.remove()
    pod = pods(node, "terminal", "/var/lib/grit/terminal")
    peer = pod.peer(tty=True)
    assert pod.told()["started"] == told["started"]
    until("what it writes to its terminal", lambda: "told" in peer.output())
    assert "hello" in peer.attach("hello", "hello"), "its terminal echoes"
    assert peer.exec("sh", "-c", "readlink /proc/1/fd/1").startswith("/dev/pts/")
