"""Files that an overlay with `index=on` shows changed under names of which its upper directory knows nothing.

There a lower file with several names stays one file when it is written through one of them: the copy lies in the index,
below the work directory, and the other names lead to it without an entry of their own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def exist(work: str) -> bool:
    """Whether the index below the work directory holds files at all; with nfs_export it holds directories too."""
    try:
        with os.scandir(os.path.join(work, "index")) as entries:
            return any(not entry.is_dir(follow_symlinks=False) for entry in entries)
    except FileNotFoundError:
        return False


def names(merged: int, prefix: str = "") -> Iterator[tuple[str, int, str]]:
    """(path, descriptor of its directory, name) of each regular file with several names below the merged directory.

    Which of them have changed can't be seen from outside, so it is all of them; few images have many. (Not found: one
    written through a name that was then removed, when only one other name is left.)
    """
    with os.scandir(merged) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_directory in found:
        if is_directory:
            below = os.open(name, _DIRECTORY, dir_fd=merged)
            try:
                yield from names(below, prefix + name + "/")
            finally:
                os.close(below)
        else:
            facts = os.stat(name, dir_fd=merged, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
                yield prefix + name, merged, name
