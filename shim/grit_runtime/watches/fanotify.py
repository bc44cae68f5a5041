"""One fanotify group, through a duplicate of its descriptor."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

from . import fdinfo
from .finding import FANOTIFY, permission_groups
from .opening import Root, via
from .record import Group, Holder, Mark, Problem, Record
from .syscalls import (
    FAN_ALLOW,
    FAN_EVENT_INFO_TYPE_PIDFD,
    FAN_MARK_ADD,
    FAN_MARK_EVICTABLE,
    FAN_MARK_FILESYSTEM,
    FAN_MARK_FLUSH,
    FAN_MARK_IGNORE,
    FAN_MARK_IGNORED_MASK,
    FAN_MARK_IGNORED_SURV_MODIFY,
    FAN_MARK_INODE,
    FAN_MARK_MOUNT,
    FAN_PERMISSION_EVENTS,
    fanotify_mark,
    readable,
)

Finder = Callable[[Sequence[Holder], dict[int, int], str], "int | None"]

KINDS = {"inode": FAN_MARK_INODE, "mount": FAN_MARK_MOUNT, "filesystem": FAN_MARK_FILESYSTEM}
# linux/fanotify.h struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid
_EVENT = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH")  # struct fanotify_event_info_header: info_type, pad, len
_FD = struct.Struct("=i")
_RESPONSE = struct.Struct("=iI")  # struct fanotify_response: fd, response
_CAP_SYS_ADMIN = 1 << 21  # linux/capability.h


def marks(fd: int) -> Group:
    """The group behind a descriptor of ours."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return fdinfo.fanotify(file.read())


def require_answered(record: Record, hosts: dict[int, int], descriptor: Finder) -> None:
    """Refuses `fanotify-permission-pending` when a listener has questions in its queue: taken out, they would never be
    answered. Those that it has read and not answered can't be seen."""
    for group in permission_groups(record):
        fd = descriptor(group.holders, hosts, FANOTIFY)
        if fd is None:
            continue
        try:
            waiting = readable(fd)
        finally:
            os.close(fd)
        if waiting:
            from ..checks import refuse

            holder = group.holders[0]
            raise refuse("fanotify-permission-pending", pid=holder.pid, fd=holder.fd, bytes=waiting)


def descriptors(block: bytes) -> tuple[list[int], list[int], int]:
    """Of a block read from a group: descriptors to close, those of them whose event waits for a permission, and how
    many events it holds. Each event brings a descriptor of the file, and with FAN_REPORT_PIDFD one of the process."""
    to_close, to_answer, events, at = [], [], 0, 0
    while at + _EVENT.size <= len(block):
        length, _, _, head, mask, file, _ = _EVENT.unpack_from(block, at)
        events += 1
        if file >= 0:
            to_close.append(file)
            if mask & FAN_PERMISSION_EVENTS:
                to_answer.append(file)
        info, end = at + head, at + length
        while info + _INFO.size + _FD.size <= end:
            kind, _, size = _INFO.unpack_from(block, info)
            if kind == FAN_EVENT_INFO_TYPE_PIDFD:
                pidfd = _FD.unpack_from(block, info + _INFO.size)[0]
                if pidfd >= 0:
                    to_close.append(pidfd)
            info += max(size, _INFO.size)
        at += max(length, _EVENT.size)
    return to_close, to_answer, events


def drain(fd: int) -> int:
    """Read all that waits and close what comes with it; the count of events. Nobody else may read now."""
    events = failures = 0
    while readable(fd) > 0 and failures < 1000:
        try:
            block = os.read(fd, 65536)
        except BlockingIOError:
            break
        except OSError:  # one event's file could not be opened: the kernel has dropped that event
            failures += 1
            continue
        to_close, to_answer, count = descriptors(block)
        events += count
        try:
            for file in to_answer:
                os.write(fd, _RESPONSE.pack(file, FAN_ALLOW))
        finally:
            for file in to_close:
                os.close(file)
    return events + failures


def detach(fd: int, group: Group) -> Group:
    for kind in {mark.kind for mark in group.marks}:
        fanotify_mark(fd, FAN_MARK_FLUSH | KINDS[kind], 0, None)
    return group._replace(lost=group.lost + drain(fd))


def calls(mark: Mark) -> list[tuple[int, int]]:
    """The one or two calls that make this mark: (flags, mask) for fanotify_mark(2)."""
    base = FAN_MARK_ADD | KINDS[mark.kind] | mark.flags & FAN_MARK_EVICTABLE
    steps = []
    if mark.mask:
        steps.append((base, mark.mask))
    if mark.ignored:
        how = FAN_MARK_IGNORE if mark.flags & FAN_MARK_IGNORE else FAN_MARK_IGNORED_MASK
        steps.append((base | how | mark.flags & FAN_MARK_IGNORED_SURV_MODIFY, mark.ignored))
    return steps


def privileged(host: int) -> bool:
    """Whether the process may mark mounts and file systems itself: CAP_SYS_ADMIN in our own user namespace. We do it
    for no other, or a record could have the whole node watched."""
    try:
        if os.readlink(f"/proc/{host}/ns/user") != os.readlink("/proc/self/ns/user"):
            return False
        with open(f"/proc/{host}/status") as status:
            permitted = next((int(line.split()[1], 16) for line in status if line.startswith("CapPrm:")), 0)
    except OSError:
        return False
    return bool(permitted & _CAP_SYS_ADMIN)


def reattach(fd: int, group: Group, root: Root) -> list[Problem]:
    holder = group.holders[0]
    problems = []
    allowed: bool | None = None
    for mark in group.marks:
        if mark.kind != "inode":
            if allowed is None:
                allowed = any(h.pid in root.hosts and privileged(root.hosts[h.pid]) for h in group.holders)
            if not allowed:
                detail = f"no holder has CAP_SYS_ADMIN on the node, which a {mark.kind} mark needs"
                problems.append(Problem("not-allowed", "fanotify", holder.pid, holder.fd, 0, mark.path, detail))
                continue
        try:
            file = root.open(mark.path, mark.root)
        except OSError as error:
            problems.append(Problem("path-gone", "fanotify", holder.pid, holder.fd, 0, mark.path, str(error)))
            continue
        try:
            for flags, mask in calls(mark):
                fanotify_mark(fd, flags, mask, via(file))
        except OSError as error:
            problems.append(Problem("failed", "fanotify", holder.pid, holder.fd, 0, mark.path, str(error)))
        finally:
            os.close(file)
    return problems
