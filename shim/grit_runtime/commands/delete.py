"""grit-runtime delete: a container that was restored on `create` and never started ends without running."""

from __future__ import annotations

from grit_runtime import cgroup, chain, container, process
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Only a forced delete ends a live container, as with any runtime; it dies in the freezer."""
    facts = container.held(call.root or "", call.id)
    if facts is not None:
        dead = process.started(facts["pid"]) != facts["started"]
        if call.flag("--force") and not dead:
            dead = not cgroup.kill(cgroup.Group(facts["path"], facts["version"]))
        if dead:
            container.release(call.root or "", call.id)
    chain.execute(chain.next_runtime(settings), call.rebuilt())
