"""Where a checkout keeps its nodes, and how its runs are named. Two checkouts share no name and no file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
#: GRIT_NODES moves the cache, so that clones on one machine can share it or a larger disk can hold it
NODES = Path(os.environ.get("GRIT_NODES") or CHECKOUT / ".nodes").absolute()
TREES = NODES / "trees"
IMAGES = NODES / "images"
RUNS = NODES / "runs"

#: all cgroups of this checkout begin with it
PREFIX = "grit-" + hashlib.sha256(os.fsencode(NODES)).hexdigest()[:6] + "-"


def digest(*parts: bytes | str | Path) -> str:
    """A short name for these values and files' contents."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:12]
