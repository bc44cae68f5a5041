"""GPU containers on two real nodes, on a SIMULATED driver: real containerd, runtime and CRIU; the GPU is none.

The simulated device is one that CRIU really cannot dump, and what lies in "GPU memory" is in no image unless it was
suspended first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import simulation
from tests.gpu.simulation import MIB, onnode
from tests.gpu.simulation.onnode import OnNode
from tests.nodes.cri.kept import configured, records
from tests.nodes.gpujob import BASE, SIZE, checkpoint, gates, start
from tests.testbed import Node
from tests.testbed.node import CommandFailed, until


@pytest.mark.parametrize("processes", [1, 4])
def test_gpu_memory_moves_to_another_node(gpus: dict[str, OnNode], node_a: Node, node_b: Node, processes: int) -> None:
    """From a GPU to one with another UUID and another device number, into a bundle that was never injected."""
    here, there = gpus[node_a.name], gpus[node_b.name]
    job = start(here, "gpu-move", processes=processes)
    ticks = job.intact()
    base = checkpoint(job)  # containerd pauses first
    assert here.simulation.used() == 0
    job.container.delete()
    node_a.push(base, node_b, base)
    moved = start(there, "gpu-move", processes=processes, source=base)
    assert moved.intact() >= ticks
    assert there.simulation.used() >= processes * SIZE
    device = moved.container.path("/dev/nvidia0").stat().st_rdev
    assert device & 0xFF == simulation.UNDUMPABLE[1]
    back = checkpoint(moved)
    moved.container.delete()
    node_b.push(back, node_a, back)
    again = start(here, "gpu-move", processes=processes, source=back)
    assert again.intact() >= ticks
    again.container.delete()


def test_leave_running(gpus: dict[str, OnNode], node: Node) -> None:
    one = gpus[node.name]
    job = start(one, "gpu-stay", processes=2)
    pids, ticks = job.pids(), job.intact()
    base = checkpoint(job, leave_running=True)
    assert job.pids() == pids
    assert job.intact() > ticks
    job.container.delete()
    copy = start(one, "gpu-stay", processes=2, source=base)
    copy.intact()
    copy.container.delete()


def test_without_us_criu_refuses_the_device(gpus: dict[str, OnNode], node_a: Node) -> None:
    """What the simulation is worth: a runtime that does not suspend cannot dump this container."""
    job = start(gpus[node_a.name], "gpu-wrong")
    work = f"{BASE}/wrong"
    node_a.path(work).mkdir(parents=True, exist_ok=True)
    with pytest.raises(CommandFailed):
        node_a.run(
            ["runc", "--root", "/run/containerd/runc/default", "checkpoint", "--leave-running",
             "--image-path", f"{work}/images", "--work-path", work, "gpu-wrong"]
        )  # fmt: skip
    log = node_a.path(f"{work}/dump.log").read_text()
    assert "/dev/nvidia" in log or f"10:{simulation.UNDUMPABLE[0]}" in log
    job.intact()
    job.container.delete()


@pytest.mark.parametrize("verb", ["lock", "checkpoint"])
def test_a_container_that_cannot_be_suspended_runs_on_as_before(gpus: dict[str, OnNode], node: Node, verb: str) -> None:
    one = gpus[node.name]
    job = start(one, "gpu-fault", processes=3)
    pids = job.pids()
    inner = json.loads(job.file("status.1").read_text())["pid"]
    with one.simulation.fault(verb, "999", inner), pytest.raises(CommandFailed) as failed:
        checkpoint(job)
    assert "cuda-call-failed" in str(failed.value)
    assert job.pids() == pids and job.container.status()[1] == "RUNNING"
    job.intact()
    checkpoint(job)
    job.container.delete()


def test_paused_by_the_caller_stays_paused_when_it_fails(gpus: dict[str, OnNode], node: Node) -> None:
    one = gpus[node.name]
    job = start(one, "gpu-paused")
    node.ctr("tasks", "pause", "gpu-paused")
    images = f"{BASE}/paused"
    words = ["grit-runtime", "--root", "/run/containerd/runc/default", "checkpoint", "--image-path", images]
    with one.simulation.fault("checkpoint", "801"), pytest.raises(CommandFailed) as failed:
        node.run([*words, "gpu-paused"], timeout=180)
    assert "cuda-managed-memory" in str(failed.value)
    assert job.container.status()[1] == "PAUSED"
    node.ctr("tasks", "resume", "gpu-paused")
    job.intact()
    job.container.delete()


SMALL, LARGE = 96 * MIB, 192 * MIB  # memory limit, GPU memory


def limit_of(node: Node, container: str) -> int:
    group = f"/sys/fs/cgroup/memory{node.recipe.cgroup_parent}/{container}"
    return int(node.path(f"{group}/memory.limit_in_bytes").read_text())


def test_memory_limit_far_below_the_gpu_memory(gpus: dict[str, OnNode], node_a: Node) -> None:
    one = gpus[node_a.name]
    job = start(one, "gpu-limit", size=LARGE, limit=SMALL)
    checkpoint(job, leave_running=True)
    assert limit_of(node_a, "gpu-limit") == SMALL
    job.intact()
    base = checkpoint(job)
    job.container.delete()
    again = start(one, "gpu-limit", size=LARGE, limit=SMALL, source=base)
    assert limit_of(node_a, "gpu-limit") == SMALL
    again.intact()
    # the same without us: its memory limit kills it
    pid = again.pids()[-1]
    program = f"""from grit_runtime.cuda.client import Helper
with Helper() as helper:
    helper.one("lock", 60, pid={pid}, timeout_ms=0)
    helper.one("checkpoint", 60, pid={pid})"""
    node_a.run(["python3", "-c", program], check=False)
    until("its end", lambda: again.container.status()[1] != "RUNNING", 60)
    again.container.delete()


def test_killed_in_the_middle(gpus: dict[str, OnNode], node: Node) -> None:
    """SIGKILL while the driver copies: the guardian brings every process back."""
    one = gpus[node.name]
    job = start(one, "gpu-killed", processes=2)
    operations = node.path("/run/grit-runtime/op")

    def mine() -> list[Path]:
        return list(operations.glob("checkpoint-*gpu-killed*")) if operations.exists() else []

    words = ["grit-runtime", "--root", "/run/containerd/runc/default", "checkpoint", "--image-path", f"{BASE}/killed"]
    with one.simulation.fault("checkpoint", "slow=3000"):
        child = node.popen([*words, "gpu-killed"])
        until("the suspension", lambda: mine() and "resume-gpu" in (mine()[0] / "journal").read_text(), 120)
        until("all are locked", lambda: len(list(one.simulation.folder.glob("control.*"))) >= 2, 60)
        node.run(["kill", "-9", (mine()[0] / "owner").read_text().partition(":")[0]])
        child.wait(60)
    until("the guardian's work", lambda: not mine(), 120)
    assert job.container.status()[1] == "RUNNING"
    job.intact()
    job.container.delete()


def test_forked_child_is_refused_by_name(gpus: dict[str, OnNode], node_b: Node) -> None:
    job = start(gpus[node_b.name], "gpu-fork", "--fork")
    with pytest.raises(CommandFailed) as failed:
        checkpoint(job)
    assert "gpu-forked-child" in str(failed.value)
    job.intact()
    job.container.delete()


def test_a_restore_that_the_driver_refuses_leaves_nothing(gpus: dict[str, OnNode], node_a: Node) -> None:
    one = gpus[node_a.name]
    job = start(one, "gpu-back")
    base = checkpoint(job)
    job.container.delete()
    with one.simulation.fault("restore", "999"), pytest.raises(CommandFailed) as failed:
        start(one, "gpu-back", source=base)
    assert "cuda-call-failed" in str(failed.value)
    assert one.simulation.used() == 0
    assert node_a.leaks() == []
    again = start(one, "gpu-back", source=base)
    again.intact()
    again.container.delete()


def test_another_model_is_refused_before_criu(gpus: dict[str, OnNode], node_a: Node) -> None:
    one = gpus[node_a.name]
    job = start(one, "gpu-model")
    base = checkpoint(job)
    job.container.delete()
    before = one.simulation.gpus
    try:
        one.simulation.gpus = (before[0]._replace(model="NVIDIA Simulated A100"),)
        one.simulation.write()
        with pytest.raises(CommandFailed) as failed:
            start(one, "gpu-model", source=base)
    finally:
        one.simulation.gpus = before
        one.simulation.write()
    assert "gpu-other-model" in str(failed.value)


def test_verify_compares_the_gpus_too(gpus: dict[str, OnNode], node_a: Node) -> None:
    """Another driver and another model: each is named, and the driver alone can be passed by, which goes on record."""
    one = gpus[node_a.name]
    job = start(one, "gpu-verify")
    base = checkpoint(job)
    job.container.delete()
    assert gates(node_a, base) == {"gpu memory": "ok", "gpus": "ok"}
    path = node_a.path(f"{base}/checkpoint/grit.json")
    manifest = json.loads(path.read_text())
    manifest["gpu"]["driver"] = "999.1"
    path.write_text(json.dumps(manifest))
    assert gates(node_a, base, code=1) == {"gpu memory": "ok", "driver-mismatch": "bad"}
    allow = ("--allow", "driver-mismatch")
    assert gates(node_a, base, *allow) == {"gpu memory": "ok", "driver-mismatch": "allowed"}
    before = one.simulation.gpus
    try:
        one.simulation.gpus = (before[0]._replace(model="NVIDIA Simulated A100"),)
        one.simulation.write()
        assert gates(node_a, base, *allow, code=1) == {"gpu memory": "ok", "gpu-other-model": "bad"}
    finally:
        one.simulation.gpus = before
        one.simulation.write()
    with configured(node_a, allow='["driver-mismatch"]'):
        again = start(one, "gpu-verify", source=base, notes={"grit.dev/allow": "driver-mismatch"})
    again.intact()
    again.container.delete()
    notes = records(node_a, "gpu-verify")[-1]["notes"]
    assert any(note.startswith("allowed by annotation: driver-mismatch: ") and "999.1" in note for note in notes)


# What the simulation needs beside the real thing: its "GPU memory" is a folder, which must not lie in the rw layer.
GPU_TEST = """
import functools, sys
from grit_runtime.cuda import trial
from grit_runtime.ctl.gpu_test import command
mount = {"destination": FOLDER, "source": FOLDER, "type": "bind", "options": ["rbind", "rw"]}
trial.Trial = functools.partial(trial.Trial, mounts=[mount])
command()
"""


def gpu_test(node: Node, *words: str) -> dict[str, Any]:
    program = GPU_TEST.replace("FOLDER", repr(onnode.FOLDER))
    # the node's own root is an overlay; the layer of the image with Python in it is not
    layers = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    python = next(node.path(layers).glob("*/fs/usr/bin/python3"))
    lower = f"{layers}/{python.parts[-5]}/fs"
    words = ("--bytes", "8M", "--backend", "libcuda", "--python", "/usr/bin/python3", "--lower", lower, *words)
    done = node.run(["python3", "-c", program, *words, "--json"], timeout=200)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_gpu_test_says_that_a_node_works(gpus: dict[str, OnNode], node: Node) -> None:
    found = gpu_test(node, "--processes", "2")
    assert found["survived"] is True and len(found["after"]) == 2
    assert {"suspend", "criu", "resume", "checkpoint in all"} <= {phase["name"] for phase in found["phases"]}
    assert gpus[node.name].simulation.used() == 0
    assert node.leaks() == []


def test_gpu_test_in_two_halves_on_two_nodes(gpus: dict[str, OnNode], node_a: Node, node_b: Node) -> None:
    folder = f"{BASE}/gpu-test"
    first = gpu_test(node_a, "--to", folder)
    assert first["survived"] is None
    node_a.push(folder, node_b, folder)
    second = gpu_test(node_b, "--from", folder)
    assert second["survived"] is True and second["before"] == first["before"] == second["after"]
