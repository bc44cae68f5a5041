"""A dump that fails, at each point where it can: a clear error, and the container runs on as it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.nodes.moving import (
    CONTAINERD,
    KILL_CRIU,
    KILL_US,
    SMALL,
    fault_at_stage,
    images,
    low_level,
    nothing_remains,
    reason,
    record,
    small,
    well,
)
from tests.testbed import CommandFailed, Container, Node, Testbed

NAME = "failing"
#: what stays of a checkpoint that failed: nothing that a restore would take for one
FOLDER = images(NAME)


@pytest.fixture(scope="module")
def running(testbed: Testbed) -> Iterator[dict[str, Container]]:
    """One container on each node, with the full workload; it must survive all that is done to it here."""
    made = {}
    try:
        for node in testbed.nodes:
            made[node.name] = node.start(NAME, env=SMALL)
        yield made
    finally:
        for container in made.values():
            container.delete()


@pytest.fixture
def container(node: Node, running: dict[str, Container]) -> Iterator[Container]:
    """The node's container; after the test it has to go on as it did before, and nothing may be left."""
    one = running[node.name]
    before = one.ask()
    well(before)
    node.run(["rm", "-rf", FOLDER])
    yield one
    well(one.ask(), before)
    nothing_remains(node, NAME, lives=True)
    names = node.run(["sh", "-c", f"ls {FOLDER} 2>/dev/null || true"]).stdout.split()
    assert [name for name in names if name.endswith(".img") or name in ("grit.json", "rootfs-diff.tar")] == []


def dump(container: Container, folder: str = FOLDER, *more: str) -> subprocess.CompletedProcess[str]:
    """As the shim calls us, without the pause before: so that nobody else lets the container go on."""
    words = ["grit-runtime", "--root", CONTAINERD, "checkpoint", "--image-path", folder, *more, container.name]
    return container.node.run(words, check=False, timeout=120)


def status(container: Container) -> str:
    """As the low-level runtime has it from the kernel; what containerd shows is what it remembers."""
    state = container.node.run(["runc", "--root", CONTAINERD, "state", container.name]).stdout
    return str(json.loads(state)["status"])


def test_unwritable_folder(container: Container) -> None:
    with small(container.node, "ro") as folder:
        done = dump(container, folder)
    assert done.returncode == 1 and reason(done.stderr) == "images-unwritable"


def test_full_disk(container: Container) -> None:
    """Of all that CRIU wrote nothing stays, so there is room again."""
    with small(container.node, "size=2m") as folder:
        with pytest.raises(CommandFailed) as failure:
            container.checkpoint(folder)
        assert reason(str(failure.value)) == "dump-failed", failure.value
        assert container.node.run(["sh", "-c", f"ls {folder}/*.img || true"]).stdout == ""
    kept = record(container.node, NAME)
    assert (kept["result"], kept["reason"], kept["logs"]) == ("failed", "dump-failed", ["dump.log"])


def test_full_disk_for_the_layer_alone(container: Container) -> None:
    """The rw layer comes after the images: when it doesn't fit, the checkpoint is none."""
    node = container.node
    container.path("/data/upper/large").write_bytes(b"x" * (40 << 20))
    with small(node, "size=40m") as folder:
        done = dump(container, folder)
        assert done.returncode == 1 and reason(done.stderr).startswith("layer-"), done.stderr
        assert not node.path(f"{folder}/grit.json").exists()
        assert node.run(["sh", "-c", f"ls {folder}/*.img {folder}/*.tar || true"]).stdout == ""
        container.path("/data/upper/large").unlink()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("stage", ["pre-dump", "network-lock", "post-dump"])
def test_criu_is_killed(container: Container, stage: str, paused: bool) -> None:
    node = container.node
    if paused:
        node.ctr("tasks", "pause", NAME)
    try:
        with fault_at_stage(node, stage, KILL_CRIU):
            done = dump(container)
        assert done.returncode == 1 and reason(done.stderr) == "dump-failed", done.stderr
        assert record(node, NAME)["reason"] == "dump-failed"
        assert status(container) == ("paused" if paused else "running")
    finally:
        if paused:
            node.ctr("tasks", "resume", NAME)


def test_criu_is_killed_at_its_start(container: Container) -> None:
    """Under containerd, which pauses before and resumes after."""
    node = container.node
    node.write("/usr/local/sbin/criu", '#!/bin/sh\n[ "$1" != swrk ] || kill -9 $$\nexec /usr/sbin/criu "$@"\n', 0o755)
    try:
        with pytest.raises(CommandFailed) as failure:
            container.checkpoint(FOLDER)
        assert reason(str(failure.value)) == "dump-failed", failure.value
    finally:
        node.path("/usr/local/sbin/criu").unlink()


def test_runtime_is_killed(container: Container) -> None:
    with low_level(container.node, "kill -9 $$"):
        done = dump(container)
    assert done.returncode == 1 and reason(done.stderr) == "dump-failed", done.stderr


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("stage", ["pre-dump", "network-lock", "post-dump"])
def test_we_are_killed(container: Container, stage: str, paused: bool) -> None:
    """The guardian ends CRIU and puts everything back; then a checkpoint succeeds."""
    node = container.node
    if paused:
        node.ctr("tasks", "pause", NAME)
    try:
        with fault_at_stage(node, stage, KILL_US):
            assert dump(container).returncode != 0
            nothing_remains(node, NAME, lives=True)
        assert status(container) == ("paused" if paused else "running")
    finally:
        if paused:
            node.ctr("tasks", "resume", NAME)
    # what was written is no checkpoint
    assert not node.path(f"{FOLDER}/grit.json").exists()
    if stage == "network-lock":
        assert dump(container, FOLDER, "--leave-running").returncode == 0
        node.run(["rm", "-rf", FOLDER])


def test_we_are_killed_before_criu_starts(container: Container) -> None:
    """The runtime that we started doesn't end by itself: the guardian sees to it. Under containerd."""
    node = container.node
    with low_level(node, f"{KILL_US}; exec sleep 300"):
        with pytest.raises(CommandFailed):
            container.checkpoint(FOLDER)
        nothing_remains(node, NAME, lives=True)
    assert "sleep 300" not in node.run(["ps", "-eo", "args="]).stdout
    assert status(container) == "running"
