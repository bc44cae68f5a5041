"""What a checkpoint of the demo's container costs through us, against `runc checkpoint` with options written by hand.

runc alone cannot dump that container: its inotify watches and its fanotify mark lie on overlay and /proc. So runc dumps
a twin that has everything else, on the same node, in turn with us. What we do and runc doesn't is all in our time:
looking, taking the watches away and putting them back, saving the rw layer, checksums, the manifest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.figures import Figure, added, told
from tests.testbed import Container, Node, Testbed

HERE = Path(__file__).parent
ROUNDS = 15
WALL_LIMIT, FROZEN_LIMIT = 200.0, 60.0  # ms
NOT_FOR_RUNC = "watches,fanotify"
BIND = "type=bind,src=/srv/bench,dst=/bench,options=rbind:ro"
MODES = {"running": "checkpoint", "paused": "checkpoint, paused first"}
# What a person would find out by hand for this container. runc 1.1 has no option for the groups, so the file says it.
OPTIONS = ("--tcp-established", "--file-locks")
CONFIGURATION = "ghost-limit 64M\nlink-remap\nmanage-cgroups=ignore\n"


def measure(bed: Testbed) -> list[Figure]:
    """The figures of both nodes."""
    return [figure for node in bed.nodes for figure in on(node, ROUNDS)]


def on(node: Node, rounds: int) -> list[Figure]:
    """The figures of one node."""
    for name in ("heartbeat.py", "dumps_inside.py"):
        node.path("/srv/bench").mkdir(exist_ok=True)
        shutil.copy(HERE / name, node.path("/srv/bench") / name)
    node.write("/srv/bench/criu.conf", CONFIGURATION)
    found: dict[str, Container] = {}
    try:
        for side, runtime, without in (("ours", "grit", ""), ("theirs", "nvidia", NOT_FOR_RUNC)):
            found[side] = node.start(
                f"bench-{side}", runtime=runtime, env={"BENCH_WITHOUT": without},
                args=["python3", "-I", "-S", "/bench/heartbeat.py"], options=["--mount", BIND],
            )  # fmt: skip
            found[side].wait_ready()
        sides: dict[str, dict[str, object]] = {
            "ours": {"runtime": "/usr/bin/grit-runtime", "options": [], "environment": {}},
            "theirs": {
                "runtime": "/usr/bin/runc",
                "options": OPTIONS,
                "environment": {"CRIU_CONFIG_FILE": "/srv/bench/criu.conf"},
            },
        }
        for side, container in found.items():
            sides[side].update(pid=container.pid, id=container.name)
        argv = ["python3", "-I", "/srv/bench/dumps_inside.py", str(rounds)]
        times = json.loads(node.run(argv, timeout=60 + rounds * 20, input=json.dumps(sides)).stdout)
        for container in found.values():
            said = container.ask("check")
            if said["bad"]:
                raise RuntimeError(f"{container.name} is not what it was: {said['bad']}")
    finally:
        for container in found.values():
            container.delete()
    return figures(node.name, times)


def figures(node: str, times: dict[str, tuple[list[float], list[float]]]) -> list[Figure]:
    """From what dumps_inside.py printed."""
    made = []
    for mode, name in MODES.items():
        made.append(added(f"{node}: {name}, wall time", *times[f"{mode} wall"], WALL_LIMIT))
        made.append(added(f"{node}: {name}, frozen", *times[f"{mode} frozen"], FROZEN_LIMIT))
        begin = f"{mode} phase "
        made += [told(f"  of which {key[len(begin) :].strip()}", ours) for key, (ours, _) in times.items()
                 if key.startswith(begin)]  # fmt: skip
    return made
