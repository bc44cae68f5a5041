"""CRI's CheckpointContainer, which the kubelet's checkpoint API calls: what it makes, and a restore from that."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator

import pytest

from tests.nodes.cri import Cri, CriError, Pod
from tests.nodes.cri.kept import records
from tests.testbed import Node, Testbed

FOLDER = "/var/lib/grit/api"


@pytest.fixture
def origin(node_b: Node) -> Iterator[Pod]:
    pod = Pod(Cri(node_b), "origin")
    try:
        yield pod
    finally:
        pod.remove()
        pod.cri.close()
        node_b.run(["rm", "-rf", FOLDER])
    assert node_b.leaks() == []


def test_containerd_before_2_has_none(node_a: Node) -> None:
    cri = Cri(node_a)
    try:
        with pytest.raises(CriError) as caught:
            cri.call("CheckpointContainer", container_id="x", location="/var/lib/grit/x.tar", timeout=60)
        assert caught.value.code == "UNIMPLEMENTED"
    finally:
        cri.close()


def test_its_archive_can_be_restored(origin: Pod, testbed: Testbed) -> None:
    """By its path, and unpacked, on both nodes; and the container that it was made of lives on."""
    node = origin.node
    node.path(FOLDER).mkdir(parents=True)
    main, peer = origin.start("main", env={"GRIT_MEMORY": "16"}), origin.peer()
    identity, told = main.ask("identity")["identity"], origin.told()
    for container in (main, peer):
        origin.cri.call(
            "CheckpointContainer", 100, container_id=container.id, location=f"{FOLDER}/{container.name}.tar", timeout=90
        )
        (record,) = records(node, container.id)
        assert (record["operation"], record["result"]) == ("dump", "ok")
        with tarfile.open(node.path(f"{FOLDER}/{container.name}.tar")) as archive:
            known = {"checkpoint/grit.json", "checkpoint/inventory.img", "config.dump", "spec.dump", "rootfs-diff.tar"}
            assert known <= set(archive.getnames())
    assert main.ask()["bad"] == [] and main.ask("identity")["identity"] == identity
    now = origin.told()
    assert (now["started"], now["connection"], now["unlinked"]) == (told["started"], "alive", True)

    node.push(FOLDER, testbed.a, FOLDER)
    for other, unpacked in ((testbed.a, False), (testbed.b, True)):
        try:
            restored(other, unpacked, identity, told["started"])
        finally:
            other.run(["rm", "-rf", FOLDER])
        assert other is node or other.leaks() == []


def restored(node: Node, unpacked: bool, identity: str, started: str) -> None:
    ends = {"main": "main.tar", "peer": "peer.tar"}
    if unpacked:
        ends = {"main": "main", "peer": ""}  # the container's own folder, and the pod's
        for name in ends:
            place = node.path(f"{FOLDER}/{name}")
            place.mkdir()
            subprocess.run(["tar", "-x", "-C", place, "-f", f"{place}.tar"], check=True, timeout=60)
            os.unlink(f"{place}.tar")
    notes = {name: {"grit.dev/checkpoint": f"{FOLDER}/{end}".rstrip("/")} for name, end in ends.items()}
    pod = Pod(Cri(node), "later")
    try:
        main = pod.start("main", env={"GRIT_MEMORY": "16"}, annotations=notes["main"])
        pod.peer(annotations=notes["peer"])
        assert main.ask("identity")["identity"] == identity and main.ask()["bad"] == []
        now = pod.told()
        assert (now["started"], now["segment"], now["unlinked"]) == (started, True, True)
        assert main.exec("hostname") == "later\n" and main.exec("ls", "/dev/shm") == "counter\n"
    finally:
        pod.remove()
        pod.cri.close()
