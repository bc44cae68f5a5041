"""The container's rw layer, and the /dev/shm it shares with its pod: saved at dump, put in place before a restore.

    found = layer.overlay(mounts.read(pid))              # None: nothing to carry
    layer.save(found, f"/proc/{pid}/root", out)          # an OCI layer
    layer.apply_once(archive, f"{bundle}/rootfs")

The names are fetched from their modules when they are asked for: a dump loads nothing of what a restore needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grit_runtime.layer.applying import Applied, applied, apply, apply_once
    from grit_runtime.layer.mounted import Overlay, overlay, shm_of
    from grit_runtime.layer.newfile import Saved
    from grit_runtime.layer.saving import save, save_shm
    from grit_runtime.layer.shm import Placed, apply_shm, empty, remove_shm

NAME = "rootfs-diff.tar"
SHM_NAME = "shm.tar"

__all__ = [
    "NAME", "SHM_NAME", "Applied", "Overlay", "Placed", "Saved", "applied", "apply", "apply_once", "apply_shm",
    "empty", "overlay", "remove_shm", "save", "save_shm", "shm_of",
]  # fmt: skip

_HOME = {
    "Applied": "applying", "applied": "applying", "apply": "applying", "apply_once": "applying",
    "Overlay": "mounted", "overlay": "mounted", "shm_of": "mounted",
    "Saved": "newfile", "save": "saving", "save_shm": "saving",
    "Placed": "shm", "apply_shm": "shm", "empty": "shm", "remove_shm": "shm",
}  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(name)
