"""System V IPC of a pod: its containers share one IPC namespace, whose objects CRIU dumps with each of them.

Of the images of one container only what that container needs may come back into the live namespace, or the next one's
restore finds its own objects there and fails ("File exists"):

- shared memory with the container that has it mapped, and with no other;
- semaphores and message queues, which belong to no process, with the first that is restored into a pod without any.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from grit_runtime.criu import imagefile, inventory
from grit_runtime.namespaces import enter

KINDS = ("shm", "sem", "msg")
SYSVIPC = 1 << 10  # VMA_AREA_SYSVIPC of a mapping's status, criu/include/image.h
EMPTY = 8  # bytes of an image file without an entry: two magic numbers
IPC_RMID = 0  # linux/ipc.h

Objects = Mapping[str, Collection[int]]  # kind -> IDs


def left_out(in_image: Sequence[str], mapped: bool, live: Objects) -> list[str]:
    """The kinds that must not be restored, of those `in_image`. `mapped`: by a process of this container."""
    return [kind for kind in in_image if (not mapped if kind == "shm" else live.get(kind))]


def in_image(images: str) -> list[str]:
    """The kinds of which the images hold an object."""
    found = set()
    for name in imagefile.names(images):
        before, _, kind = imagefile.kind(name).partition("-")
        if before == "ipcns" and kind in KINDS and os.stat(f"{images}/{name}", follow_symlinks=False).st_size > EMPTY:
            found.add(kind)
    return sorted(found)


def mapped(images: str) -> bool:
    """Whether a process of the images has a System V shared memory mapped."""
    for pid, _, _ in inventory.processes(images):
        if imagefile.exists(images, f"mm-{pid}.img"):
            areas = imagefile.first(f"{images}/mm-{pid}.img").messages(14)
            if any(area.integer(7) & SYSVIPC for area in areas):
                return True
    return False


def objects(namespace: str) -> dict[str, list[int]]:
    """The objects that are in the IPC namespace that `namespace` names."""

    def read() -> bytes:
        lines = []
        for kind in KINDS:
            with open(f"/proc/sysvipc/{kind}") as table:
                lines.append(" ".join(line.split()[1] for line in list(table)[1:]))
        return "\n".join(lines).encode()

    lines = enter(namespace, read).decode().split("\n")
    return {kind: [int(number) for number in line.split()] for kind, line in zip(KINDS, lines, strict=True)}


def remove(namespace: str, ids: Objects) -> None:
    """Remove objects from a namespace; those that aren't there are gone already."""

    def effect() -> bytes:
        import ctypes

        libc = ctypes.CDLL(None)
        for number in ids.get("shm", ()):
            libc.shmctl(number, IPC_RMID, None)
        for number in ids.get("sem", ()):
            libc.semctl(number, 0, IPC_RMID, None)
        for number in ids.get("msg", ()):
            libc.msgctl(number, IPC_RMID, None)
        return b""

    enter(namespace, effect)
