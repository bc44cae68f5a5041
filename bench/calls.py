"""What a call and a container's whole life cost through us, and without us: node A, in front of NVIDIA's stand-in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.figures import Figure, added, share
from tests.testbed import Testbed

HERE = Path(__file__).parent
CALL_LIMIT = 2.0  # ms
LIFE_LIMIT = 10.0  # percent


def measure(bed: Testbed) -> list[Figure]:
    """The figures; the clock runs in the node itself, where a call is only a fork and an exec."""
    node = bed.a
    shutil.copy(HERE / "calls_inside.py", node.path("/tmp/calls_inside.py"))
    done = node.run(["python3", "-I", "/tmp/calls_inside.py", node.recipe.cgroup_parent], timeout=600)
    times: dict[str, tuple[list[float], list[float]]] = json.loads(done.stdout)
    found = [
        added(f"a call that passes through: {name}", *times[name], CALL_LIMIT) for name in ("--version", "state")
    ]
    found.append(share("create + start + state + kill + delete", *times["life"], LIFE_LIMIT))
    found += [added(f"  of which {name}", *times[name]) for name in ("create", "start", "kill", "delete")]
    return found
