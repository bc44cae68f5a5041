"""Two real nodes with our package, once for all node tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu import simulation
from tests.gpu.simulation import SimulatedGpu, uuid
from tests.gpu.simulation.onnode import OnNode
from tests.nodes.moving import Bundle
from tests.nodes.origin import Origin
from tests.testbed import Node, Testbed

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deb() -> Path:
    """Our package, built now if a file of it is newer."""
    made = subprocess.run(
        ["make", "--no-print-directory", "deb"], cwd=CHECKOUT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    found = sorted((CHECKOUT / "build").glob("grit-runtime_*.deb"))
    assert made.returncode == 0 and found, f"make deb failed:\n{made.stdout}"
    return found[-1]


@pytest.fixture(scope="session")
def testbed(deb: Path) -> Iterator[Testbed]:
    """Both nodes up, our package installed in both."""
    assert os.geteuid() == 0, "node tests need root"
    with Testbed(deb=deb) as bed:
        yield bed
    assert bed.leaks() == []


@pytest.fixture
def node_a(testbed: Testbed) -> Node:
    return testbed.a


@pytest.fixture
def node_b(testbed: Testbed) -> Node:
    return testbed.b


@pytest.fixture
def nodes(testbed: Testbed) -> tuple[Node, Node]:
    return testbed.nodes


@pytest.fixture(params=["node-a", "node-b"])
def node(request: pytest.FixtureRequest, testbed: Testbed) -> Node:
    """Each of the two nodes in turn."""
    return testbed.a if request.param == "node-a" else testbed.b


@pytest.fixture(scope="module")
def gpus(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OnNode]]:
    """Both nodes with a simulated GPU: other UUIDs, other device numbers on each."""
    built = simulation.build(tmp_path_factory.mktemp("simulation"))
    made = {}
    for number, node in enumerate(testbed.nodes):
        made[node.name] = OnNode(node, built, (SimulatedGpu(uuid(number), minor=simulation.UNDUMPABLE[number]),))
    yield made
    for one in made.values():
        one.remove()


@pytest.fixture(scope="module")
def origin(testbed: Testbed, request: pytest.FixtureRequest) -> Iterator[Origin]:
    """A checkpoint to be refused, named as the test's file."""
    one = Origin(testbed.a, request.module.__name__.rpartition("test_")[2].replace("_", "-"))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def plain(origin: Origin) -> Iterator[Bundle]:
    """A bundle that fits; nothing of it may be changed by a refusal, so all tests of a file can use it."""
    with origin.bundle() as one:
        yield one
