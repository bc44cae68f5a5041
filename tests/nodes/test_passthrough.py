"""Calls that aren't ours, to real runtimes: a program that uses one sees no difference with us in front of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import Node, Testbed

INSIDE = Path(__file__).parent / "passthrough_inside.py"


def steps(node: Node, runtime: str, env: dict[str, str]) -> list[list[Any]]:
    shutil.copy(INSIDE, node.path("/tmp/passthrough_inside.py"))
    done = node.run(
        ["python3", "-I", "/tmp/passthrough_inside.py", runtime, node.recipe.cgroup_parent], env=env, timeout=280
    )
    found: list[list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name, runtime", [("a", "runc"), ("b", "runc"), ("b", "crun")])  # crun wants a v2 layout
def test_nobody_notices_us(testbed: Testbed, name: str, runtime: str) -> None:
    node = {"a": testbed.a, "b": testbed.b}[name]
    node.write("/tmp/chained.toml", f'[runtime]\nnext = "/usr/bin/{runtime}"\n')
    env = {"GRIT_RUNTIME_CONFIG": "/tmp/chained.toml", "GRIT_RUNTIME_RUN": "/tmp/chained"}
    direct = steps(node, f"/usr/bin/{runtime}", env)
    through = steps(node, "/usr/bin/grit-runtime", env)
    # the scenario itself is sound: a life went by, with what it should show
    codes = {step[0]: step[1] for step in direct}
    assert (codes["start c"], codes["its end"], codes["run, and SIGTERM to it"]) == (0, 7, 9)
    assert codes["run --bundle /tmp/passthrough/b c"] == 5
    said = {step[0]: step[2] for step in direct}
    assert "odd.name=#" in said["what a hook sees"]
    assert "inherited" in said["run --bundle /tmp/passthrough/b c (systemd)"]
    assert len(direct) > 60
    for one, other in zip(through, direct, strict=True):
        assert one == other
    assert node.leaks() == []
