"""The container's rw layer, and the /dev/shm it shares with its pod: saved at dump, put in place before a restore.

    found = layer.of_process(pid)                       # or of_rootfs("<bundle>/rootfs"); None: nothing to carry
    layer.save(layer.resolve(found, near), rootfs, out)  # rootfs-diff.tar, an OCI layer
    layer.apply(tar, "<bundle>/rootfs")

The names are fetched from their modules when they are asked for: a dump loads nothing of what a restore needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grit_runtime.layer.applying import Applied, applied, apply
    from grit_runtime.layer.mounted import Overlay, of_process, of_rootfs, overlay, resolve
    from grit_runtime.layer.saving import Saved, save, save_shm
    from grit_runtime.layer.shm import Placed, apply_shm, remove_shm

__all__ = [
    "Applied", "Overlay", "Placed", "Saved", "applied", "apply", "apply_shm", "of_process", "of_rootfs", "overlay",
    "remove_shm", "resolve", "save", "save_shm",
]  # fmt: skip

_HOME = {
    "Applied": "applying", "applied": "applying", "apply": "applying",
    "Overlay": "mounted", "of_process": "mounted", "of_rootfs": "mounted", "overlay": "mounted", "resolve": "mounted",
    "Saved": "saving", "save": "saving", "save_shm": "saving",
    "Placed": "shm", "apply_shm": "shm", "remove_shm": "shm",
}  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(name)
