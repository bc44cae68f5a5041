"""A new archive that is there at once and whole, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from grit_runtime.checks import refuse
from grit_runtime.layer.tarout import Changed, Writer


class Saved(NamedTuple):
    """`bytes` is the archive's size, `left_out` counts sockets, device nodes and names that would read as whiteouts."""

    bytes: int
    entries: int
    left_out: int = 0


def new_archive(out: str, source: str, walk: Callable[[Writer], tuple[int, int]]) -> Saved:
    """Runs `walk` on a new file beside `out` and renames that; if it fails, no file is left."""
    part = out + ".part"
    try:
        if os.path.lexists(part):
            os.unlink(part)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise refuse("layer-unwritable", path=out, error=error.strerror) from error
    try:
        writer = Writer(fd)
        entries, left_out = walk(writer)
        writer.finish()
        os.rename(part, out)
    except BaseException as error:
        os.unlink(part)
        raise _named(error, out, source) from error
    finally:
        os.close(fd)
    return Saved(writer.bytes, entries, left_out)


def _named(error: BaseException, out: str, source: str) -> BaseException:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return refuse("layer-unwritable", path=out, error=error.strerror)
    if isinstance(error, OSError):
        where = error.filename if isinstance(error.filename, str) else source
        return refuse("layer-unreadable", path=where, error=error.strerror or error)
    if isinstance(error, Changed):
        return refuse("layer-unreadable", path=source, error="a file in it changed while it was read")
    if isinstance(error, RecursionError):
        return refuse("layer-unreadable", path=source, error="directories lie too deep in each other")
    return error
