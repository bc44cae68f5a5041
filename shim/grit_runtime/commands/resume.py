"""grit-runtime resume: a container that was restored on `create` is let go by `start`, and by nothing else."""

from __future__ import annotations

from grit_runtime import chain, container, process
from grit_runtime.argv import Call
from grit_runtime.checks import refuse
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """As runc, which resumes no created container.

    containerd resumes at once what it paused for a checkpoint that was killed, and the guardian may still be putting
    back what that had changed: a freezer that it finds thawed it freezes again.
    """
    container.wait_unlocked(call.root or "", call.id)
    facts = container.held(call.root or "", call.id)
    if facts is not None and process.started(facts["pid"]) == facts["started"]:
        raise refuse("container-held", id=call.id)
    chain.execute(chain.next_runtime(settings), call.rebuilt())
