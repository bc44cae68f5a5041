"""What an image would give a process that the live spec does not: pure comparisons, each refused by name.

CRIU makes credentials and namespaces as the image says, with root's power, whatever spec the runtime was given. An
honest image of the same pod fits the spec by construction: what runs in a container can only give up privileges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu.inventory import Namespaces
from grit_runtime.criu.tasks import Capabilities, Credentials, Task

# Numbers from linux/capability.h, in their order from 0.
CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
""".split()
SETUID, SETGID = 1 << CAPABILITIES.index("SETUID"), 1 << CAPABILITIES.index("SETGID")
# The spec's names of namespaces (OCI runtime spec, linux.namespaces) for those of an image.
# Not "cgroup": CRIU, told to leave cgroups alone, makes no such namespace, so honest images of a second generation have
# none either; it only hides paths.
KINDS = {"pid": "pid", "net": "network", "ipc": "ipc", "uts": "uts", "mnt": "mount", "user": "user", "time": "time"}


def refusals(tasks: Iterable[Task], namespaces: Iterable[Namespaces], spec: dict[str, Any]) -> list[Refusal]:
    """All that the image's processes would have beyond `spec`; `privilege-raised` and `outside-namespaces`."""
    found = []
    for task in tasks:
        for one in task.credentials:
            found += [refuse("privilege-raised", pid=task.pid, what=what) for what in raised(one, spec)]
    for kind in outside(namespaces, spec):
        found.append(refuse("outside-namespaces", kind=kind))
    return found


def raised(one: Credentials, spec: dict[str, Any]) -> Iterator[str]:
    """What a thread's credentials have that a process of `spec` could not have come to."""
    process, linux = spec.get("process") or {}, spec.get("linux") or {}
    limit = bounds(process.get("capabilities"))
    for name, have, may in zip(Capabilities._fields, one.capabilities, limit, strict=True):
        if have & ~may:
            yield f"{', '.join(names(have & ~may))} in its {name} set"
    if _filters(linux.get("seccomp")) and one.seccomp not in ("filter", "strict"):
        yield "no seccomp filter"
    if not process.get("noNewPrivileges"):
        return  # a program with the set-user-ID bit may have made it any user
    if one.no_new_privs is not True:
        yield "no no_new_privs"
    user = process.get("user") or {}
    own = mask((process.get("capabilities") or {}).get("permitted"))
    if not own & SETUID:
        yield from (f"user {uid}" for uid in sorted({one.uid, one.effective_uid} - {user.get("uid", 0)}))
    if not own & SETGID:
        given = {user.get("gid", 0), *(user.get("additionalGids") or ())}
        yield from (f"group {gid}" for gid in sorted({one.gid, one.effective_gid, *one.groups} - given))


def _filters(seccomp: dict[str, Any] | None) -> bool:
    """Whether the spec's linux.seccomp forbids anything."""
    return seccomp is not None and (seccomp.get("defaultAction") != "SCMP_ACT_ALLOW" or bool(seccomp.get("syscalls")))


def bounds(sets: dict[str, Any] | None) -> Capabilities:
    """The most that a process which began with the spec's `process.capabilities` can have in each set.

    A program with file capabilities, or run by user 0, takes what the bounding set holds; what was permitted can be
    made effective and inheritable, and what is both can be made ambient (capabilities(7)).
    """
    given = {kind: mask((sets or {}).get(kind)) for kind in Capabilities._fields}
    bounding = given["bounding"]
    permitted = given["permitted"] | given["ambient"] | bounding
    return Capabilities(
        inheritable=given["inheritable"] | permitted, permitted=permitted, effective=given["effective"] | permitted,
        bounding=bounding, ambient=given["ambient"] | permitted,
    )  # fmt: skip


def mask(listed: Iterable[str] | None) -> int:
    """The bits of capabilities named as in a spec (CAP_CHOWN); names that we don't know give nothing."""
    known = [name.upper().removeprefix("CAP_") for name in listed or ()]
    return sum(1 << number for number, name in enumerate(CAPABILITIES) if name in known)


def names(bits: int) -> list[str]:
    """The names of the bits, CAP_N for those that have none here."""
    known = [f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if bits >> number & 1]
    return known + [f"CAP_{number}" for number in range(len(CAPABILITIES), bits.bit_length()) if bits >> number & 1]


def outside(namespaces: Iterable[Namespaces], spec: dict[str, Any]) -> list[str]:
    """The kinds of namespace, by the spec's names, that the spec gives and a task of the image was not in.

    CRIU leaves such a task in the namespace that it is in itself: the node's.
    """
    wanted = {entry.get("type") for entry in (spec.get("linux") or {}).get("namespaces") or ()}
    found = {KINDS[kind] for one in namespaces for kind in one.shared if KINDS.get(kind) in wanted}
    return sorted(found)
