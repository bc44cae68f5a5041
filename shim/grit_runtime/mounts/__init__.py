"""The mounts of a container: `mountinfo` reads what /proc says of them, `described` tells what they are and what CRIU
must be told at a dump, `restoring` plans them for a restore, which a dump needn't load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grit_runtime.mounts.described import NULL, Known, describe, dump_externals, foreign, known, looks_nvidia
from grit_runtime.mounts.mountinfo import Mount, below, inside, parse, read, unescape

if TYPE_CHECKING:
    from grit_runtime.mounts.restoring import EMPTY, ImageMount, Placeholder, RestorePlan, restore_plan
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from grit_runtime.mounts import restoring

        return getattr(restoring, name)


__all__ = [
    "EMPTY", "NULL", "ImageMount", "Known", "Mount", "Placeholder", "RestorePlan", "below", "describe",
    "dump_externals", "foreign", "inside", "known", "looks_nvidia", "parse", "read", "restore_plan",
    "unescape",
]  # fmt: skip
