"""GRIT's world (kaito-project/grit): its agent's steps on one pod, its shim's calls on another, its sentinel.

Its shim is not here, so what it does is done by hand: it mounts the rootfs, applies rootfs-diff.tar, and calls
BinaryName `restore` as the stock shim does, with neither `create` nor `start`.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator

import pytest

from tests.nodes.cri import Container, Cri, CriError, Pod
from tests.nodes.cri.kept import configured, records
from tests.testbed import Node, until

BASE = "/var/lib/grit/checkpoints/default/moved"
WORK = "/run/grit-shim"
ROOT = "/run/containerd/runc/k8s.io"


@pytest.fixture
def cri(node: Node) -> Iterator[Cri]:
    client = Cri(node)
    try:
        with configured(node, wait="60"):
            yield client
    finally:
        client.close()
        node.run(["rm", "-rf", "/var/lib/grit/checkpoints"])
    assert node.leaks() == []


def agent(container: Container) -> None:
    """GRIT's agent: pause, dump into NAME-work, the snapshot's diff beside it, resume; NAME-work becomes NAME."""
    node, work = container.node, f"{BASE}/{container.name}-work"
    node.path(work).mkdir(parents=True)
    key = container.id
    ctr = ["-n", "k8s.io"]
    node.ctr(*ctr, "tasks", "pause", key)
    images = ["--image-path", f"{work}/checkpoint", "--work-path", work]
    node.ctr(*ctr, "tasks", "checkpoint", *images, key, timeout=120)
    node.run(["sh", "-c", f"ctr -n k8s.io snapshots diff {key} >{work}/rootfs-diff.tar"])
    node.run(["ctr", *ctr, "tasks", "resume", key], check=False)
    node.path(work).rename(node.path(f"{BASE}/{container.name}"))


class Shim:
    """GRIT's shim for a container that CRI has created: it has a snapshot and a spec, and no task."""

    def __init__(self, container: Container) -> None:
        self.node, self.id = container.node, container.id
        self.bundle = f"{WORK}/{self.id}"
        spec = self.node.ctr("-n", "k8s.io", "containers", "info", "--spec", self.id)
        self.node.write(f"{self.bundle}/config.json", spec)
        self.node.path(f"{self.bundle}/rootfs").mkdir()
        mount = self.node.ctr("-n", "k8s.io", "snapshots", "mounts", f"{self.bundle}/rootfs", self.id)
        self.node.run(shlex.split(mount))

    def apply(self, archive: str) -> None:
        apply = f"from grit_runtime.layer import apply; apply({archive!r}, '{self.bundle}/rootfs')"
        self.node.run(["python3", "-c", apply])

    def call(self, *words: str) -> str:
        log = f"{self.bundle}/log.json"
        return self.node.run(["grit-runtime", "--root", ROOT, "--log", log, "--log-format", "json", *words]).stdout

    def restore(self, images: str) -> None:
        self.call("restore", "--image-path", images, "--work-path", f"{self.bundle}/work", "--no-subreaper", "--detach",
                  "--pid-file", f"{self.bundle}/init.pid", "--bundle", self.bundle, self.id)  # fmt: skip

    def end(self) -> None:
        self.node.run(["grit-runtime", "--root", ROOT, "delete", "--force", self.id], check=False)
        self.node.run(["umount", f"{self.bundle}/rootfs"], check=False)
        self.node.run(["rm", "-rf", WORK])


def test_its_shim_restores(cri: Cri) -> None:
    node = cri.node
    pod = Pod(cri, "origin")
    shim = None
    try:
        main, peer = pod.start("main", env={"GRIT_MEMORY": "16"}), pod.peer()
        told, identity = pod.told(), main.ask("identity")["identity"]
        agent(main)
        agent(peer)
        assert main.ask()["bad"] == [] and pod.told()["started"] == told["started"], "they live on"
        pod.remove()
        node.path(f"{BASE}/download-state").touch()

        pod = Pod(cri, "shim", annotations={"grit.dev/checkpoint": BASE})
        # the peer first by hand, and the other as stock containerd does it
        container = pod.create("peer", command=peer.command)
        shim = Shim(container)
        shim.apply(f"{BASE}/peer/rootfs-diff.tar")
        shim.restore(f"{BASE}/peer/checkpoint")
        now = pod.told()
        assert (now["started"], now["segment"], now["unlinked"]) == (told["started"], True, True)
        assert records(node, container.id)[-1]["result"] == "ok"
        main = pod.start("main", env={"GRIT_MEMORY": "16"})
        assert main.ask("identity")["identity"] == identity and main.ask()["bad"] == []
    finally:
        if shim:
            shim.end()
        pod.remove()


def test_layer_is_applied_once(cri: Cri) -> None:
    """By the shim or by us, whoever comes first; a file that is written again would have another inode."""
    node = cri.node
    pod = Pod(cri, "origin")
    shim = None
    try:
        pod.peer().checkpoint(BASE)
        pod.remove()
        assert node.path(f"{BASE}/peer/rootfs-diff.tar").exists(), "the folder is laid out as GRIT's"
        for applied in (True, False):
            pod = Pod(cri, "shim")
            shim = Shim(pod.create("peer"))
            file = node.path(f"{shim.bundle}/rootfs/tmp/other")
            assert not file.exists()
            if applied:
                shim.apply(f"{BASE}/peer/rootfs-diff.tar")
                before = file.stat().st_ino
            shim.restore(f"{BASE}/peer/checkpoint")
            assert pod.told()["unlinked"] and (not applied or file.stat().st_ino == before)
            shim.end()
            pod.remove()
    finally:
        if shim:
            shim.end()
        pod.remove()


def test_sentinel_is_awaited(cri: Cri) -> None:
    """The manifest comes before the rest: nothing begins until all is there."""
    node = cri.node
    pod = Pod(cri, "origin")
    try:
        peer = pod.peer()
        told = pod.told()
        peer.checkpoint("/var/lib/grit/checkpoints/source")
        pod.remove()
        source, images = "/var/lib/grit/checkpoints/source/peer", f"{BASE}/peer/checkpoint"
        pod = Pod(cri, "sentinel", annotations={"grit.dev/checkpoint": BASE})
        container = pod.create("peer", command=peer.command)
        errors: list[CriError] = []

        def start() -> None:
            try:
                container.start()
            except CriError as error:
                errors.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        try:
            wanted = ["pgrep", "-f", f"grit_runtime.* create .*{container.id}"]
            pid = until("create, waiting", lambda: node.run(wanted, check=False).stdout.strip())
            until("its sleep", lambda: "nanosleep" in node.path(f"/proc/{pid}/wchan").read_text())
            before = has_read(node, pid)
            some = f"{source}/checkpoint/inventory.img {source}/checkpoint/grit.json"
            node.run(["sh", "-ec", f"mkdir -p {images}; cp {some} {images}"])
            until("a look at the manifest", lambda: not thread.is_alive() or has_read(node, pid) > before)
            assert thread.is_alive() and not errors
            node.run(["sh", "-ec", f"cp -a {source}/. {BASE}/peer; touch {BASE}/download-state"])
        finally:
            thread.join(100)
        assert not thread.is_alive() and not errors, errors
        assert pod.told()["started"] == told["started"]
    finally:
        pod.remove()


def has_read(node: Node, pid: str) -> int:
    """Bytes that a process has read up to now."""
    try:
        return int(node.path(f"/proc/{pid}/io").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_data_that_do_not_come(cri: Cri) -> None:
    node = cri.node
    node.path(f"{BASE}/main/checkpoint").mkdir(parents=True)
    pod = Pod(cri, "late", annotations={"grit.dev/checkpoint": BASE})
    try:
        with configured(node, wait="1"):
            container = pod.create("main")
            assert "download-timeout" in container.error_of_start()
            node.path(f"{BASE}/download-state").touch()
            container.remove()
            assert "checkpoint-not-found" in pod.create("main", attempt=1).error_of_start()
    finally:
        pod.remove()
