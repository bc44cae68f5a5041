"""Take watches and marks away before the dump, and put the same ones back. The container is frozen, or its tasks
stopped.

Both work on a duplicate of the container's own descriptor (pidfd_getfd(2)), so nothing runs in the container. What
`detach` does, `reattach` undoes; both may run twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from grit_runtime.process import host_pids

from . import fanotify, inotify, timers
from .finding import FANOTIFY, INOTIFY
from .opening import Root
from .record import Group, Holder, Instance, Problem, Record
from .syscalls import pidfd_getfd


def descriptor(holders: Sequence[Holder], hosts: dict[int, int], link: str) -> int | None:
    """A duplicate of the first holder's descriptor that is still what it was (`link`); None: there is none."""
    for holder in holders:
        host = hosts.get(holder.pid)
        if host is None:
            continue
        try:
            if os.readlink(f"/proc/{host}/fd/{holder.fd}") != link:
                continue
            fd = pidfd_getfd(host, holder.fd)
        except OSError:
            continue
        if os.readlink(f"/proc/self/fd/{fd}") == link:  # what we have got, not what we looked at
            return fd
        os.close(fd)
    return None


def detach(record: Record) -> Record:
    """Take all watches and marks of a frozen container away and empty the queues. `record` comes from `settle`.

    Returns the record for the manifest: with the number of the next watch, the count of events lost, and without
    watches that had gone by themselves. If one step fails, what was taken is put back and the refusal
    `watches-detach-failed` or `fanotify-permission-pending` tells the first error. Pass the result, or `record`
    itself, to `reattach`.
    """
    hosts = host_pids(record.pids)
    fanotify.require_answered(record, hosts, descriptor)
    done_inotify: list[Instance] = []
    done_fanotify: list[Group] = []
    one: Instance | Group
    try:
        for one in record.inotify:
            fd = _have(one.holders, hosts, INOTIFY)
            try:
                done_inotify.append(inotify.detach(fd, one))
            finally:
                os.close(fd)
        for one in record.fanotify:
            fd = _have(one.holders, hosts, FANOTIFY)
            try:
                done_fanotify.append(fanotify.detach(fd, one))
            finally:
                os.close(fd)
    except OSError as error:
        from ..checks import refuse

        reattach(record, record.pids)
        holder = one.holders[0]
        what = "inotify watches" if isinstance(one, Instance) else "fanotify marks"
        raise refuse("watches-detach-failed", what=what, pid=holder.pid, fd=holder.fd, error=error) from error
    read = timers.catch_up(record, hosts, descriptor)
    return record._replace(inotify=tuple(done_inotify), fanotify=tuple(done_fanotify), timers=read)


def _have(holders: Sequence[Holder], hosts: dict[int, int], link: str) -> int:
    fd = descriptor(holders, hosts, link)
    if fd is None:
        raise FileNotFoundError(f"the descriptor is no longer {link}")
    return fd


def reattach(record: Record, pids: Sequence[int]) -> list[Problem]:
    """Put all watches and marks back, with their numbers, masks and flags, into the processes `pids` (host pids of
    the container, on whatever node). Watches that are there already are left. Never raises for a single one: it is a
    Problem.

    The record may come from a stranger: paths are opened below the container's root, without following links.
    """
    hosts = host_pids(pids)
    problems: list[Problem] = []
    root = Root(hosts, record.init)
    try:
        for one in record.inotify:
            fd = descriptor(one.holders, hosts, INOTIFY)
            if fd is None:
                problems.append(_gone(one.holders, "inotify"))
                continue
            try:
                problems += inotify.reattach(fd, one, root)
            finally:
                os.close(fd)
        for group in record.fanotify:
            fd = descriptor(group.holders, hosts, FANOTIFY)
            if fd is None:
                problems.append(_gone(group.holders, "fanotify"))
                continue
            try:
                problems += fanotify.reattach(fd, group, root)
            finally:
                os.close(fd)
    finally:
        root.close()
    return problems


def rearm(record: Record, pids: Sequence[int]) -> list[Problem]:
    """After a restore, tasks still stopped: set periodic timers that died in it going again. Times go on from where
    they were at the dump, as with CRIU; a timer set to wall-clock time keeps to its wall-clock raster."""
    return timers.rearm(record, host_pids(pids), descriptor)


def _gone(holders: Sequence[Holder], what: str) -> Problem:
    return Problem("descriptor-gone", what, holders[0].pid, holders[0].fd)
