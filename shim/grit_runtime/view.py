"""The images as this pod may see them: a read-only overlay of the image folder and the few files that must differ.

CRIU writes what an image says into namespaces that may be the pod's own: the hostname, SysV IPC objects. The folder
itself is never changed, and little is copied.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from grit_runtime import mounting
from grit_runtime.journal import Journal

NOTHING: Mapping[str, int | None] = MappingProxyType({})
HIDDEN = os.makedev(0, 0)  # an overlay's whiteout: a character device 0:0


class Edits(NamedTuple):
    """What differs: `replaced` files by name with their content, and names that are `hidden`."""

    replaced: dict[str, bytes]
    hidden: list[str]


def plan(
    images: str, names: list[str], hostname: str | None, *,
    without: Collection[str], outside: Mapping[str, int | None] = NOTHING,
) -> Edits:  # fmt: skip
    """What this pod needs: the live `hostname` in the image of a uts namespace (None: as in the image), no System V
    objects of the kinds `without` (shm, sem, msg), and external files at the positions `outside` (openfiles.at_home).
    `names` are the files in `images`."""
    from grit_runtime.criu import images as criu
    from grit_runtime.criu import openfiles

    replaced, hidden = {}, []
    for name in names:
        if name.startswith("utsns-") and hostname is not None:
            with open(f"{images}/{name}", "rb") as file:
                replaced[name] = criu.with_hostname(file.read(), hostname)
        elif name.startswith(tuple(f"ipcns-{kind}-" for kind in without)):
            hidden.append(name)
        elif name == "files.img" and outside:
            with open(f"{images}/{name}", "rb") as file:
                replaced[name] = openfiles.at_home(file.read(), outside)
    return Edits(replaced, hidden)


def make(journal: Journal, images: str, edits: Edits) -> str:
    """The folder that CRIU shall read: `images` itself when nothing differs, else a mount that the journal undoes."""
    if not edits.replaced and not edits.hidden:
        return images
    top, seen = journal.folder + "/edits", journal.folder + "/images"
    os.mkdir(top, 0o700)
    os.mkdir(seen, 0o700)
    for name, content in edits.replaced.items():
        with open(f"{top}/{name}", "wb") as file:
            file.write(content)
    for name in edits.hidden:
        os.mknod(f"{top}/{name}", stat.S_IFCHR, HIDDEN)
    below = os.open(images, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By descriptor: a colon or a comma in the folder's name would end the option.
        journal.add("unmount", path=seen)
        mounting.mount("overlay", seen, "overlay", mounting.MS_RDONLY | mounting.MS_NODEV | mounting.MS_NOSUID,
                       f"lowerdir={top}:/proc/self/fd/{below}")  # fmt: skip
    finally:
        os.close(below)
    return seen
