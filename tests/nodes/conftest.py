"""Two real nodes with our package, once for all node tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
