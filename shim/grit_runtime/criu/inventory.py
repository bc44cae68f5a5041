"""What the inventory and the ids files of an image say: format, namespaces, plugins.

Source: CRIU's images/inventory.proto and core.proto (task_kobj_ids_entry).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from grit_runtime.checks import refuse
from grit_runtime.criu.imagefile import Path, entries, first
from grit_runtime.criu.protobuf import Message

FORMAT = 2  # CRTOOLS_IMAGES_V1_1, the only one since CRIU 2.0
KINDS = {"pid": 5, "net": 6, "ipc": 7, "uts": 8, "mnt": 9, "user": 10, "cgroup": 11, "time": 12}
LOCKS = {0: "iptables", 1: "nftables", 2: "skip"}  # enum NETWORK_LOCK_METHOD; iptables when the field is missing
LSM = {0: "none", 1: "selinux", 2: "apparmor"}


class Inventory(NamedTuple):
    """`namespaces`: kind -> number of CRIU's own namespaces at the dump; a task with such a number lived in the host's.

    `plugins` is None when the image doesn't say (before CRIU 4.1). `uptime` is the node's at the dump, in microseconds.
    """

    version: int
    namespaces: dict[str, int]
    network_lock: str
    lsm: str
    plugins: list[str] | None
    run_id: str
    tcp_close: bool
    uptime: int


class Namespaces(NamedTuple):
    """Where one task lives: kind -> number within the image, and the kinds that it shares with CRIU, so with the host.

    On restore CRIU puts a task into its own namespace of each kind in `shared`: the node's, if it joins no other.
    """

    pid: int
    ids: dict[str, int]
    shared: tuple[str, ...]


def inventory(folder: Path) -> Inventory:
    """Refuses `image-missing`, `image-truncated`, `image-malformed`, `image-format` (a format other than 1.1)."""
    path = os.path.join(folder, "inventory.img")
    message = first(path)
    if message.integer(1) != FORMAT:
        raise refuse("image-format", path=path, version=message.integer(1))
    ids = message.message(3)
    plugins = message.message(12)
    return Inventory(
        version=message.integer(1),
        namespaces=_kinds(ids) if ids else {},
        network_lock=LOCKS.get(message.integer(11), str(message.integer(11))),
        lsm=LSM.get(message.integer(6), "unknown"),
        plugins=plugins.texts(12) if plugins else None,
        run_id=message.text(13),
        tcp_close=bool(message.integer(10)),
        uptime=message.integer(8),
    )


def processes(folder: Path) -> list[tuple[int, int, list[int]]]:
    """(pid, parent's pid, threads' ids) of each process, as the container counts them. The first is the root."""
    path = os.path.join(folder, "pstree.img")
    found = [(entry.integer(1), entry.integer(2), entry.integers(5)) for entry in entries(path)]
    if not found:
        raise refuse("image-truncated", path=path, what="it holds no process")
    return found


def ids(folder: Path, pid: int) -> Message:
    """task_kobj_ids_entry of a process: from ids-PID.img, or its core file where old images have it."""
    return first(os.path.join(folder, f"ids-{pid}.img"))


def namespaces(folder: Path) -> list[Namespaces]:
    """The namespaces of each living process. Ended ones have no ids file and are left out."""
    own = inventory(folder).namespaces
    result = []
    for pid, _, _ in processes(folder):
        if not os.path.lexists(os.path.join(folder, f"ids-{pid}.img")):
            continue
        found = _kinds(ids(folder, pid))
        shared = tuple(kind for kind in KINDS if kind in own and found.get(kind, own[kind]) == own[kind])
        result.append(Namespaces(pid, found, shared))
    return result


def _kinds(message: Message) -> dict[str, int]:
    return {kind: message.integer(number) for kind, number in KINDS.items() if message.integer(number)}
