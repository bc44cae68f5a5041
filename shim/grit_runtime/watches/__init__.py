"""Watches and timers of a container across a dump: found, taken away, put back.

    record = watches.resolve(watches.find(pids), init)      # it runs
    record = watches.settle(record, pids, init)             # it is frozen
    record = watches.detach(record)                         # undo: watches.reattach(record, pids)
    manifest["watches"] = watches.to_json(record)
    ...
    record = watches.from_json(manifest["watches"])         # restored, tasks still stopped
    problems = watches.reattach(record, pids) + watches.rearm(record, pids)

`pids` are host pids of all processes of the container, `init` is its first. All inotify and fanotify watches are
moved, also those that CRIU could dump: one way for all, and CRIU drops mask flags and loses a watch on a deleted
bind-mounted file. Events that wait unread at the dump are lost (the record counts them), as they are with CRIU alone.
"""

from __future__ import annotations

from .finding import empty, find, from_links, permission_groups
from .manifest import from_json, to_json
from .moving import detach, rearm, reattach
from .record import Group, Holder, Instance, Mark, Problem, Record, Target, Timer, Watch
from .resolving import require_resolved, resolve, settle

__all__ = [
    "Group",
    "Holder",
    "Instance",
    "Mark",
    "Problem",
    "Record",
    "Target",
    "Timer",
    "Watch",
    "detach",
    "empty",
    "find",
    "from_json",
    "from_links",
    "permission_groups",
    "rearm",
    "reattach",
    "require_resolved",
    "resolve",
    "settle",
    "to_json",
]
