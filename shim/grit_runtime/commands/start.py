"""grit-runtime start: let a container go that was restored on `create`."""

from __future__ import annotations

import os
import signal
from typing import Any

from grit_runtime import cgroup, chain, container, process
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Thaw the held container; its GPU processes resume now, for which their own threads must run."""
    facts = container.held(call.root or "", call.id)
    if facts is None or process.started(facts["pid"]) != facts["started"]:
        container.release(call.root or "", call.id)
        chain.execute(chain.next_runtime(settings), call.rebuilt())
    group = cgroup.Group(facts["path"], facts["version"])
    let_go(group, facts)
    container.release(call.root or "", call.id)
    return 0


def let_go(group: cgroup.Group, facts: dict[str, Any]) -> None:
    """Thaw, wake what was left stopped, give the GPU its memory back."""
    pids = cgroup.processes(group)
    cgroup.thaw(group)
    if facts["stopped"]:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    if facts["gpu"]:
        from grit_runtime import gpu

        gpu.resume_restored(facts["gpu"], pids)
