"""The processes of an image: the tree, who they are and what they may do, and their memory.

Source: CRIU's images/core.proto, creds.proto, mm.proto, vma.proto, pagemap.proto; include/pagemap.h for the flags.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.criu import inventory, openfiles
from grit_runtime.criu.imagefile import Path, entries, first, open_file
from grit_runtime.criu.protobuf import Message

ARCHITECTURES = {
    1: "x86_64", 2: "arm", 3: "aarch64", 4: "ppc64le", 5: "s390x", 6: "mips", 7: "loongarch64", 8: "riscv64",
}  # fmt: skip
STATES = {1: "running", 2: "dead", 3: "stopped", 6: "zombie"}
SECCOMP = {0: "disabled", 1: "strict", 2: "filter"}
TSYNC = 1  # linux/seccomp.h
PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4  # flags of a pagemap entry
COMMAND_LINE = 4096  # bytes of it that are read


class Capabilities(NamedTuple):
    """Five sets, as bit masks numbered as CAP_* in linux/capability.h."""

    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int


class Credentials(NamedTuple):
    """Of one thread. `lsm`: the profile as CRIU writes it, empty: none; `no_new_privs`: None if the image has none."""

    thread: int
    uid: int
    gid: int
    effective_uid: int
    effective_gid: int
    groups: list[int]
    capabilities: Capabilities
    securebits: int
    no_new_privs: bool | None
    lsm: str
    seccomp: str


class Task(NamedTuple):
    """One process, numbers as the container counts them. `credentials`: one entry a thread, the leader's first.

    `limits`: (soft, hard) in the order of RLIMIT_*; `ids` is empty and `exe` too for a process that has ended.
    """

    pid: int
    parent: int
    comm: str
    state: str
    architecture: str
    threads: list[int]
    exe: str
    credentials: list[Credentials]
    limits: list[tuple[int, int]]
    oom_score_adj: int
    personality: int


class Memory(NamedTuple):
    """Of one process, in bytes: `mapped` address space, `stored` pages in the image.

    `in_parent`: bytes that an earlier image holds. `arguments`: the command line, as far as the image has its pages.
    """

    pid: int
    mapped: int
    stored: int
    in_parent: int
    mappings: int
    arguments: list[str]


def tasks(folder: Path) -> list[Task]:
    """All processes, the root first. Refuses as inventory does."""
    known = openfiles.regular_names(folder)
    result = []
    for pid, parent, threads in inventory.processes(folder):
        core = first(os.path.join(folder, f"core-{pid}.img"))
        common = core.message(3) or Message([], core.where)
        state = STATES.get(common.integer(1), "unknown")
        ended = state in ("dead", "zombie")
        others = [thread for thread in threads if thread != pid and not ended]
        cores = [core, *(first(os.path.join(folder, f"core-{thread}.img")) for thread in others)]
        limits = common.message(8)
        result.append(
            Task(
                pid=pid,
                parent=parent,
                comm=common.text(6),
                state=state,
                architecture=ARCHITECTURES.get(core.integer(1), "unknown"),
                threads=threads,
                exe="" if ended else known.get(_mm(folder, pid).integer(12), ""),
                credentials=[] if ended else _credentials(folder, [pid, *others], cores, common),
                limits=[(limit.integer(1), limit.integer(2)) for limit in (limits.messages(1) if limits else [])],
                oom_score_adj=_signed32(common.integer(14)),
                personality=common.integer(3),
            )
        )
    return result


def capabilities(folder: Path) -> dict[int, Capabilities]:
    """thread -> its capabilities, for every thread of every process."""
    return {one.thread: one.capabilities for task in tasks(folder) for one in task.credentials}


def stored_pages(folder: Path, pid: int | str) -> tuple[int, int, int]:
    """(pages in the pages file, pages in the parent image, number of the pages file) that pagemap-PID.img promises."""
    stored = parents = number = 0
    for count, entry in enumerate(entries(os.path.join(folder, f"pagemap-{pid}.img"))):
        if count == 0:
            number = entry.integer(1)
            continue
        pages, present, parent = _pages(entry)
        stored += pages if present else 0
        parents += pages if parent else 0
    return stored, parents, number


def memory(folder: Path, pid: int, page: int = PAGE) -> Memory:
    """The memory of one living process."""
    mm = _mm(folder, pid)
    areas = mm.messages(14)
    stored, parents, _ = stored_pages(folder, pid)
    return Memory(
        pid=pid,
        mapped=sum(max(0, area.integer(2) - area.integer(1)) for area in areas),
        stored=stored * page,
        in_parent=parents * page,
        mappings=len(areas),
        arguments=_arguments(folder, pid, mm, page),
    )


def read(folder: Path, pid: int, start: int, length: int, page: int = PAGE) -> bytes:
    """Memory of a process out of its pages file; stops where the image holds no page. At most `length` bytes."""
    ranges, at, number = [], 0, 0
    for count, entry in enumerate(entries(os.path.join(folder, f"pagemap-{pid}.img"))):
        if count == 0:
            number = entry.integer(1)
            continue
        pages, present, _ = _pages(entry)
        if present:
            ranges.append((entry.integer(1), pages * page, at))
            at += pages * page
    out = b""
    with open_file(os.path.join(folder, f"pages-{number}.img")) as file:
        while len(out) < length:
            here = start + len(out)
            inside = [(base, size, at) for base, size, at in ranges if base <= here < base + size]
            if not inside:
                break
            base, size, at = inside[0]
            file.seek(at + here - base)
            got = file.read(min(length - len(out), base + size - here))
            if not got:
                break
            out += got
    return out


def _mm(folder: Path, pid: int) -> Message:
    return first(os.path.join(folder, f"mm-{pid}.img"))


def _pages(entry: Message) -> tuple[int, bool, bool]:
    """(pages, whether they are in the pages file, whether they are in the parent image).

    CRIU 4.2 counts pages in field 5 and writes 0 into field 2, which is the count until 4.1.
    """
    pages = entry.integer(5) or entry.integer(2)
    if not entry.has(4):
        return pages, not entry.integer(3), bool(entry.integer(3))
    flags = entry.integer(4)
    return pages, bool(flags & PRESENT), bool(flags & PARENT)


def _arguments(folder: Path, pid: int, mm: Message, page: int) -> list[str]:
    start, end = mm.integer(8), mm.integer(9)
    raw = read(folder, pid, start, min(COMMAND_LINE, max(0, end - start)), page)
    return [part.decode("utf-8", "surrogateescape") for part in raw.rstrip(b"\0").split(b"\0")] if raw else []


def _credentials(folder: Path, threads: list[int], cores: list[Message], common: Message) -> list[Credentials]:
    found = [_one(thread, core, common) for thread, core in zip(threads, cores, strict=True)]
    bare = any(one.seccomp == "disabled" for one in found[1:])
    if bare and found[0].seccomp == "filter" and _synchronised(folder, cores[0].message(5)):
        return [one._replace(seccomp="filter") if one.seccomp == "disabled" else one for one in found]
    return found


def _synchronised(folder: Path, leader: Message | None) -> bool:
    """Whether the leader's filters will be those of all threads: CRIU writes those that all have only once, with
    SECCOMP_FILTER_FLAG_TSYNC, and none for the other threads (try_use_tsync in criu/seccomp.c)."""
    if leader is None or not leader.has(12):
        return False
    filters = first(os.path.join(folder, "seccomp.img")).messages(1)
    at = leader.integer(12)
    for _ in filters:
        if at >= len(filters):
            return False
        if filters[at].integer(3) & TSYNC:
            return True
        if not filters[at].has(2):
            return False
        at = filters[at].integer(2)
    return False


def _one(thread: int, core: Message, common: Message) -> Credentials:
    own = core.message(5) or Message([], core.where)
    creds = own.message(10) or Message([], core.where)
    mode = own.integer(11) if own.has(11) else common.integer(11)
    return Credentials(
        thread=thread,
        uid=creds.integer(1),
        gid=creds.integer(2),
        effective_uid=creds.integer(3),
        effective_gid=creds.integer(4),
        groups=creds.integers(14),
        capabilities=Capabilities(*(_mask(creds.integers(number)) for number in (9, 10, 11, 12, 19))),
        securebits=creds.integer(13),
        no_new_privs=bool(creds.integer(18)) if creds.has(18) else None,
        lsm=creds.text(15),
        seccomp=SECCOMP.get(mode, "unknown"),
    )


def _mask(words: list[int]) -> int:
    return sum((word & 0xFFFFFFFF) << 32 * index for index, word in enumerate(words))


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
