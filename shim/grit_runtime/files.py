"""Fingerprints of files that a checkpoint needs to find again: CRIU compares their size and mode, not their content.

A small file's fingerprint covers every byte. A larger one (a driver's library has a gigabyte) is known by its size, its
ELF build ID where it has one, its first and last mebibyte and 64 pages between them: another version of a library
differs in these; an edit made to deceive may not, and wouldn't need to come through a checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterable

WHOLE = 8 << 20
EDGE = 1 << 20
SAMPLES, PAGE = 64, 4096
SETTLED = 2.0  # s
MOST = 10_000  # fingerprints that are kept


def fingerprint(fd: int) -> str | None:
    """`SIZE:SHA256` of an open regular file, None for anything else."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        return None
    import hashlib  # loads OpenSSL, which all that are known already don't need

    digest = hashlib.sha256()
    size = facts.st_size
    if size <= WHOLE:
        position = 0
        while part := os.pread(fd, EDGE, position):
            digest.update(part)
            position += len(part)
    else:
        step = (size - 2 * EDGE) // SAMPLES
        digest.update(os.pread(fd, EDGE, 0))  # the ELF header and, as linkers lay it out, the build ID's note
        for number in range(SAMPLES):
            digest.update(os.pread(fd, PAGE, EDGE + number * step))
        digest.update(os.pread(fd, EDGE, size - EDGE))
    return f"{size}:{digest.hexdigest()}"


def mapped(pids: Iterable[int]) -> list[str]:
    """Paths, as the container sees them, of the files that its processes have mapped; each once, no deleted ones."""
    found: dict[str, None] = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", errors="surrogateescape") as lines:
                for line in lines:
                    at = line.find("/", 49)  # past the address, permissions, offset, device and inode
                    if at > 0 and not line.endswith(" (deleted)\n"):
                        found[line[at:-1].replace("\\012", "\n")] = None
        except OSError:
            continue
    return [path for path in found if not path.startswith(("/dev/", "/memfd:", "/SYSV", "/proc/"))]


def fingerprints(root_fd: int, paths: Iterable[str], kept: str = "") -> dict[str, str]:
    """Fingerprints of files beneath an open root folder; those that aren't there or aren't regular are left out.

    `kept` names a file with those that were made before: a file with the same device, inode, size and times, of which
    its owner can't set the last, has the same content. It is written anew when there is something to add.
    """
    from grit_runtime.beneath import open_in_root

    before = _read(kept) if kept else {}
    found, new = {}, {}
    for path in paths:
        try:
            fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            facts = os.fstat(fd)
            identity = f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}"
            value = before.get(identity) or fingerprint(fd)
        finally:
            os.close(fd)
        if value:
            found[path] = value
            # What changes again within one tick of the kernel's clock keeps its times.
            if identity not in before and time.time() - facts.st_ctime > SETTLED:
                new[identity] = value
    if kept and new:
        _write(kept, {**(before if len(before) < MOST else {}), **new})
    return found


def _read(kept: str) -> dict[str, str]:
    try:
        with open(kept, encoding="ascii") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(kept: str, values: dict[str, str]) -> None:
    """What can't be kept is made again."""
    temporary = f"{kept}.{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(values, file)
        os.replace(temporary, kept)
    except OSError:
        pass


def position(fd: int) -> int | None:
    """Where reading or writing at `fd` goes on, in bytes; None for what has no such place: a pipe, a terminal."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        return None
    appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    return facts.st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
