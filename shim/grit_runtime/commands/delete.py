"""grit-runtime delete: of a container that was restored on `create` and never started, or that crun has deleted with
its dump, or of a sandbox with marks."""

from __future__ import annotations

import subprocess

from grit_runtime import cgroup, chain, container, policy, process
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Only a forced delete ends a live container, as with any runtime; it dies in the freezer. With a pod's sandbox go
    the marks of what was restored in it."""
    runtime = chain.next_runtime(settings)
    if container.was_dumped(call.root or "", call.id) and not chain.exists(runtime, call):
        return 0
    facts = container.held(call.root or "", call.id)
    if facts is not None:
        dead = process.started(facts["pid"]) != facts["started"]
        if call.flag("--force") and not dead:
            dead = not cgroup.kill(cgroup.Group(facts["path"], facts["version"]))
        if dead:
            container.release(call.root or "", call.id)
    if not policy.marked(call.id):
        chain.execute(runtime, call.rebuilt())
    code = subprocess.run([runtime, *call.rebuilt()], check=False).returncode
    if code == 0:
        policy.forget(call.id)
    return code
