"""A restore that fails, at each point where it can: nothing of it is left, and CRIU's log is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nodes.moving import (
    KILL_CRIU,
    KILL_US,
    annotation,
    base,
    fault_at_stage,
    images,
    low_level,
    nothing_remains,
    reason,
    record,
)
from tests.nodes.origin import Origin
from tests.testbed import CommandFailed, Container, Node, Testbed

NAME = "broken"


@pytest.fixture(scope="module")
def origins(testbed: Testbed) -> Iterator[dict[str, Origin]]:
    made = {}
    try:
        for node in testbed.nodes:
            made[node.name] = Origin(node, "whole")
        yield made
    finally:
        for one in made.values():
            one.close()


@pytest.fixture
def origin(node: Node, origins: dict[str, Origin]) -> Origin:
    return origins[node.name]


def begin(origin: Origin) -> Container:
    options = ["--mount", "type=bind,src=/srv/extra,dst=/extra,options=rbind:ro"]
    return origin.node.start(NAME, annotations=annotation(origin.id), options=options, wait=False)


def clean(origin: Origin) -> None:
    nothing_remains(origin.node, NAME, but=origin.container.pid)
    mounts = origin.node.path("/proc/1/mountinfo").read_text()
    assert f"/{NAME}/" not in mounts


def works_again(origin: Origin) -> None:
    """containerd can make the same container now."""
    container = begin(origin)
    try:
        assert container.ask()["bad"] == []
    finally:
        container.delete()
    clean(origin)


def test_criu_finds_a_file_missing(origin: Origin) -> None:
    """The rw layer was left to somebody else, who didn't bring it."""
    node = origin.node
    node.run(["cp", "-a", base(origin.id), base("bare")])
    node.run(["mv", f"{base('bare')}/{origin.id}", f"{base('bare')}/bare"])
    node.run(["rm", f"{base('bare')}/bare/rootfs-diff.tar"])
    try:
        with origin.bundle() as one:
            done = one.restore(images("bare"), check=False)
            assert done.returncode == 1 and reason(done.stderr) == "restore-failed", done.stderr
            kept = record(node, one.id)
            assert (kept["result"], kept["reason"], kept["logs"]) == ("failed", "restore-failed", ["restore.log"])
            assert "/var/lib/grit-runtime/logs/" in done.stderr
            nothing_remains(node, one.id, but=origin.container.pid)
    finally:
        node.run(["rm", "-rf", base("bare")])


@pytest.mark.parametrize("stage", ["pre-restore", "setup-namespaces", "post-restore"])
def test_criu_is_killed(origin: Origin, stage: str) -> None:
    with fault_at_stage(origin.node, stage, KILL_CRIU):
        with pytest.raises(CommandFailed) as failure:
            begin(origin)
    assert reason(str(failure.value)) == "restore-failed", failure.value
    assert record(origin.node, NAME)["logs"] == ["restore.log"]
    clean(origin)
    if stage == "post-restore":
        works_again(origin)


@pytest.mark.parametrize("stage", ["pre-restore", "setup-namespaces", "post-restore", "pre-resume"])
def test_we_are_killed(origin: Origin, stage: str) -> None:
    """As the kubelet's deadline does it: the guardian ends runc, CRIU and the tasks, and removes what they made."""
    with fault_at_stage(origin.node, stage, KILL_US):
        with pytest.raises(CommandFailed):
            begin(origin)
        clean(origin)
    if stage == "pre-resume":
        works_again(origin)


def test_runtime_is_killed(origin: Origin) -> None:
    with low_level(origin.node, "kill -9 $$"):
        with pytest.raises(CommandFailed) as failure:
            begin(origin)
    assert reason(str(failure.value)) == "restore-failed", failure.value
    clean(origin)


def test_we_are_killed_before_criu_starts(origin: Origin) -> None:
    with low_level(origin.node, f"{KILL_US}; exec sleep 300"):
        with pytest.raises(CommandFailed):
            begin(origin)
        clean(origin)
    assert "sleep 300" not in origin.node.run(["ps", "-eo", "args="]).stdout
