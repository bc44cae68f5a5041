"""The SIMULATION laid into a node of the testbed, and taken out again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from grit_runtime.cuda import probe

from . import DRIVER, SimulatedGpu, Simulation

if TYPE_CHECKING:
    from tests.testbed import Node

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
FOLDER = "/var/lib/gpu-simulation"
STANDIN = "/etc/nvidia-container-runtime/standin.json"
PROGRAM, TALK = "/probe/probe.py", "/talk"


class OnNode:
    """A node whose driver is the simulation. Other tests use the node afterwards: `remove` leaves it as it was."""

    def __init__(self, node: Node, built: Path, gpus: tuple[SimulatedGpu, ...]) -> None:
        self.node = node
        self.kept: dict[str, bytes | None] = {}
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            for place in (f"{LIBRARIES}/{name}", f"{node.recipe.driver}/simulation/{name}"):
                self._keep(place)
                node.path(place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(built / name, node.path(place))
        node.run(["ldconfig"])
        node.path(FOLDER).mkdir(parents=True, exist_ok=True)
        self.simulation = Simulation(node.path(FOLDER), gpus)
        node.path("/probe").mkdir(exist_ok=True)
        shutil.copy(probe.__file__, node.path(PROGRAM))
        self._devices(self.simulation.nodes())
        self._standin()

    def _keep(self, place: str) -> None:
        path = self.node.path(place)
        self.kept[place] = path.read_bytes() if path.exists() else None

    def _devices(self, wanted: list[tuple[str, int, int]]) -> None:
        for place in self.node.path("/dev").glob("nvidia*"):
            place.unlink()
        for name, major, minor in wanted:
            os.mknod(self.node.path("/dev") / name, 0o20666, os.makedev(major, minor))

    def _standin(self) -> None:
        self._keep(STANDIN)
        facts = json.loads(self.node.path(STANDIN).read_text())
        facts["devices"] = [list(row) for row in self.simulation.nodes()]
        facts["binds"]["simulation/libcuda.so.1"] = f"{LIBRARIES}/libcuda.so.1"
        facts["env"]["SIMULATED_DRIVER"] = DRIVER
        self.node.write(STANDIN, json.dumps(facts))

    def options(self) -> list[str]:
        """ctr's options for a container with simulated GPUs: its "GPU memory" and the program are bound into it."""
        mounts = [(FOLDER, FOLDER, "rw"), ("/probe", "/probe", "ro")]
        words = [f"type=bind,src={source},dst={target},options=rbind:{mode}" for source, target, mode in mounts]
        return [part for word in words for part in ("--mount", word)]

    def remove(self) -> None:
        for place, content in self.kept.items():
            path = self.node.path(place)
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        self.node.run(["ldconfig"])
        shutil.rmtree(self.node.path(FOLDER), ignore_errors=True)
        shutil.rmtree(self.node.path("/probe"), ignore_errors=True)
        self._devices(list(self.node.recipe.devices))
