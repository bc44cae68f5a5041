"""What grit-runtime keeps of its operations on a node, and its configuration there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.testbed import Node

CONFIG = "/etc/grit-runtime/config.toml"
METRICS = "/var/lib/prometheus/node-exporter"


@contextmanager
def configured(*nodes: Node, **lines: str) -> Iterator[None]:
    """For a while `key = value` instead of the lines that the configuration of each node has; values as TOML."""
    before = {node: node.path(CONFIG).read_text() for node in nodes}
    try:
        for node, text in before.items():
            changed = text
            for key, value in lines.items():
                old = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
                changed = changed.replace(f"\n{old}\n", f"\n{key} = {value}\n")
            node.write(CONFIG, changed)
        yield
    finally:
        for node, text in before.items():
            node.write(CONFIG, text)


def records(node: Node, container: str) -> list[dict[str, Any]]:
    """The records of a container's operations, oldest first, each with `logs`: names of the log files beside it."""
    found = []
    for place in sorted(node.path(f"/var/lib/grit-runtime/logs/{container}").glob("*/record.json")):
        logs = sorted(path.name for path in place.parent.iterdir() if path != place)
        found.append({**json.loads(place.read_text()), "kept": logs})
    return found
