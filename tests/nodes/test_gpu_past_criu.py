"""GPU memory past CRIU, on two real nodes and a SIMULATED driver: it is in files beside CRIU's, and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.simulation import MIB
from tests.gpu.simulation.onnode import OnNode
from tests.nodes.cri.kept import records
from tests.nodes.gpujob import BASE, Job, checkpoint, gates, start
from tests.nodes.moving import low_level, small
from tests.testbed import Node
from tests.testbed.node import CommandFailed, until

# Kills the process of a checkpoint at the moment when its journal says that memory is being taken out.
KILL = """
until grep -qs return-gpu-memory /run/grit-runtime/op/checkpoint-*gpu-past*/journal; do :; done
kill -9 $(cut -d: -f1 /run/grit-runtime/op/checkpoint-*gpu-past*/owner)
"""
SIZE = 80 * MIB  # above the configuration's 64 MiB
CALL = ["grit-runtime", "--root", "/run/containerd/runc/default", "checkpoint", "--image-path"]


def beside(node: Node, base: str) -> list[int]:
    """The sizes of the files with GPU memory, which the manifest names, each with its sums."""
    folder = node.path(f"{base}/checkpoint")
    manifest = json.loads((folder / "grit.json").read_text())
    sizes = []
    for row in manifest["gpu"]["beside"]:
        name = f"gpu-{row['pid']}-{row['number']}.mem"
        sizes.append((folder / name).stat().st_size)
        assert sizes[-1] == sum(size for _, size in row["regions"])
        assert manifest["files"][name]["size"] == sizes[-1] and all(manifest["files"][name]["pieces"])
    return sizes


def in_criu(node: Node, base: str) -> int:
    return sum(path.stat().st_size for path in node.path(f"{base}/checkpoint").glob("pages-*.img"))


def left(folder: str, node: Node) -> list[str]:
    """What is in an image folder, but for CRIU's log."""
    return [path.name for path in node.path(folder).iterdir() if path.name != "dump.log"]


def does_not_fit(node: Node, size: str) -> None:
    """A checkpoint into a file system of that size fails, and leaves nothing there but its log."""
    with small(node, size) as folder:
        done = node.run([*CALL, folder, "gpu-past"], check=False, timeout=120)
        assert "dump-failed" in done.stderr
        assert left(folder, node) == []


@pytest.fixture
def job(gpus: dict[str, OnNode], node: Node) -> Iterator[Job]:
    made = start(gpus[node.name], "gpu-past", size=SIZE, processes=2)
    yield made
    made.container.delete()
    assert node.leaks() == []


def test_it_moves_to_another_node_and_back(gpus: dict[str, OnNode], node_a: Node, node_b: Node) -> None:
    here, there = gpus[node_a.name], gpus[node_b.name]
    first = start(here, "gpu-past", size=SIZE, processes=2)
    ticks = first.intact()
    base = checkpoint(first)
    first.container.delete()
    assert len(beside(node_a, base)) == 2 and min(beside(node_a, base)) >= SIZE
    assert in_criu(node_a, base) < SIZE
    assert gates(node_a, base) == {"gpu memory": "ok", "gpus": "ok"}
    node_a.push(base, node_b, base)
    moved = start(there, "gpu-past", size=SIZE, processes=2, source=base)
    assert moved.intact() >= ticks
    again = checkpoint(moved)
    moved.container.delete()
    assert len(beside(node_b, again)) == 2
    node_b.push(again, node_a, again)
    back = start(here, "gpu-past", size=SIZE, processes=2, source=again)
    assert back.intact() >= ticks
    back.container.delete()


def test_left_running_it_has_its_memory_again(gpus: dict[str, OnNode], node: Node, job: Job) -> None:
    pids, ticks = job.pids(), job.intact()
    base = checkpoint(job, leave_running=True)
    assert job.pids() == pids and job.intact() > ticks
    assert len(beside(node, base)) == 2
    job.container.delete()
    copy = start(gpus[node.name], "gpu-past", size=SIZE, processes=2, source=base)
    copy.intact()


def test_with_crun_at_the_end_of_the_chain(gpus: dict[str, OnNode], node_b: Node) -> None:
    """crun moves the tasks into their group when CRIU is done, and has deleted the container with its dump."""
    with low_level(node_b, runtime="crun"):
        assert "crun" in node_b.run(["grit-runtime", "--version"]).stdout
        first = start(gpus[node_b.name], "gpu-past", size=SIZE, processes=2)
        base = checkpoint(first, leave_running=True)
        ticks = first.intact()
        assert len(beside(node_b, base)) == 2
        base = checkpoint(first)
        first.container.delete()
        again = start(gpus[node_b.name], "gpu-past", size=SIZE, processes=2, source=base)
        assert again.intact() >= ticks
        again.container.delete()
    assert node_b.leaks() == []


def test_a_failed_dump_gives_it_back(node: Node, job: Job) -> None:
    """There is room for the memory and none for CRIU's images: the container runs on, and the folder is empty."""
    ticks = job.intact()
    does_not_fit(node, f"size={2 * SIZE // MIB + 6}m")
    assert job.intact() > ticks
    assert "save" in records(node, "gpu-past")[-1]["phases"]


def test_no_room_for_it_is_no_worse_than_criu(node: Node, job: Job) -> None:
    """Then CRIU has to carry it, and finds no room either: the record tells both."""
    job.intact()
    does_not_fit(node, f"size={SIZE // MIB}m")
    job.intact()
    assert any("No space" in note for note in records(node, "gpu-past")[-1]["notes"])


def test_memory_that_is_owed_is_not_dumped_without(node: Node, job: Job) -> None:
    """While an earlier operation could not give memory back, a checkpoint would lack it: refused until it is done."""
    job.intact()
    folder, images = "/run/grit-runtime/op/checkpoint-owed-1", f"{BASE}/past-owed"
    path = f"{BASE}/elsewhere/gpu-7-0.mem"
    row = {"pid": int(job.pids()[-1]), "path": path, "regions": [], "started": "1"}
    arguments = {"jobs": [row], "group": ["/", 2], "marks": folder, "carrier": [0, ""]}
    step = {"step": 1, "undo": "return-gpu-memory", "args": arguments}
    node.run(["mkdir", "-p", folder])
    node.write(f"{folder}/journal", json.dumps(step) + "\n")
    try:
        done = node.run([*CALL, images, "gpu-past"], check=False, timeout=120)
        assert "gpu-memory-owed" in done.stderr and path in done.stderr
    finally:
        node.run(["rm", "-r", folder])
    job.intact()
    node.run([*CALL, images, "--leave-running", "gpu-past"], timeout=120)
    job.intact()


@pytest.mark.parametrize("paused", [False, True])
def test_killed_when_it_is_out(node: Node, job: Job, paused: bool) -> None:
    """SIGKILL while the processes lack their memory: the guardian brings it back before they run."""
    ticks = job.intact()
    if paused:
        node.ctr("tasks", "pause", "gpu-past")
    operations = node.path("/run/grit-runtime/op")

    def mine() -> list[Path]:
        return list(operations.glob("checkpoint-*gpu-past*")) if operations.exists() else []

    child = node.popen([*CALL, f"{BASE}/past-killed", "gpu-past"])
    node.run(["sh", "-c", KILL], timeout=120)
    child.wait(60)
    until("the guardian's work", lambda: not mine(), 120)
    assert job.container.status()[1] == ("PAUSED" if paused else "RUNNING")
    if paused:
        node.ctr("tasks", "resume", "gpu-past")
    assert job.intact() > ticks
    assert left(f"{BASE}/past-killed", node) == []


def test_what_is_wrong_with_it_is_found(gpus: dict[str, OnNode], node_a: Node) -> None:
    """A file that was cut off, changed, or taken away, and a manifest that names other memory; nothing of it stays."""
    one = gpus[node_a.name]
    first = start(one, "gpu-past", size=SIZE)
    base = checkpoint(first)
    first.container.delete()
    folder = node_a.path(f"{base}/checkpoint")
    [file], manifest = list(folder.glob("gpu-*.mem")), json.loads((folder / "grit.json").read_text())

    def refusal() -> str:
        with pytest.raises(CommandFailed) as failed:
            start(one, "gpu-past", size=SIZE, source=base)
        assert node_a.leaks() == [] and one.simulation.used() == 0
        return str(failed.value)

    def edited(**gpu: Any) -> None:
        (folder / "grit.json").write_text(json.dumps({**manifest, "gpu": {**manifest["gpu"], **gpu}}))

    [row] = manifest["gpu"]["beside"]
    [[address, size]] = row["regions"]
    edited(beside=[{**row, "regions": [[address + size, size]]}])
    assert "gpu-memory-unreturned" in refusal()
    edited(beside=[{**row, "regions": [[4096, size]]}])
    assert "gpu-memory-unreturned" in refusal()
    edited(beside=[{**row, "pid": 4711}])
    assert "gpu-manifest-invalid" in refusal()
    edited()
    with open(file, "r+b") as content:
        content.write(b"other bytes")
    done = node_a.run(["gritctl", "verify", base], check=False, timeout=120)
    assert done.returncode == 1 and file.name in done.stdout
    with open(file, "r+b") as content:
        content.truncate(size - 4096)
    assert "image-changed" in refusal()
    file.unlink()
    assert "image-changed" in refusal()


def test_no_older_version_takes_it_for_whole(gpus: dict[str, OnNode], node_a: Node) -> None:
    """A version that knows nothing of these files refuses the manifest, by its format; without them it is the old."""
    one = gpus[node_a.name]
    formats = []
    for size in (SIZE, 8 * MIB):
        made = start(one, "gpu-past", size=size)
        base = checkpoint(made)
        made.container.delete()
        formats.append(json.loads(node_a.path(f"{base}/checkpoint/grit.json").read_text())["format"])
    assert formats == [2, 1]
