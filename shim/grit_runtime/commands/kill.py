"""grit-runtime kill: a signal for a container that was restored on `create` and isn't started yet."""

from __future__ import annotations

import subprocess

from grit_runtime import cgroup, chain, container, process
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """SIGKILL must end it although it is frozen; any other signal waits for `start`, as it would for a created one."""
    runtime = chain.next_runtime(settings)
    facts = container.held(call.root or "", call.id)
    words = list(call.arguments)
    signal = next((word for word in words if word.upper() in ("9", "KILL", "SIGKILL")), None)
    if facts is None or signal is None or process.started(facts["pid"]) != facts["started"]:
        chain.execute(runtime, call.rebuilt())
    code = subprocess.run([runtime, *call.rebuilt()], check=False).returncode
    cgroup.kill(cgroup.Group(facts["path"], facts["version"]))
    return code
