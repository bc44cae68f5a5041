"""Find the checkpoint that an annotation names: an untrusted path, below a folder that the admin has configured.

What may be there (`<name>` is the container's):

    <base>/<name>/checkpoint/inventory.img     GRIT's and our layout; <base> holds all containers of a pod
    <folder>/checkpoint/inventory.img          the container's own folder, also an unpacked archive of CRI
    <folder>/inventory.img                     the image folder itself
    <file>                                     the tar archive that CRI's CheckpointContainer writes

Below the configured folder nothing may be a symbolic link or be writable by anybody but root, so that what was checked
is what is read afterwards, and an image cannot be one that some pod made up.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from grit_runtime import layer
from grit_runtime.checks import Refusal, refuse
from grit_runtime.settings import Restore

SENTINEL = (
    "download-state"  # GRIT's agent makes it in <base> when all data are there (kaito-project/grit, pkg/metadata)
)
IMAGE, MANIFEST, FOLDER = "inventory.img", "grit.json", "checkpoint"
_STEP = 0.2
_SETTLED = 3.0  # seconds without a change, after which a copy is taken to have ended
OWNER = 0  # who alone may have a checkpoint in hand


class Checkpoint(NamedTuple):
    """`images`: CRIU's folder. `base`: the container's, which may be the same. `layer`, `shm`: archives, if any.
    All are absolute paths that only root can change."""

    images: str
    base: str
    layer: str | None = None
    shm: str | None = None


class Waiting(Exception):
    """Nothing is wrong, but it isn't all there yet."""


class Arriving(Waiting):
    """`found` is there, with its manifest, but not all that the manifest names: `lacking` has name and size here."""

    def __init__(self, found: Checkpoint, lacking: tuple[tuple[str, int], ...]) -> None:
        self.found, self.lacking = found, lacking


@contextlib.contextmanager
def find(
    path: str,
    name: str | None,
    restore: Restore,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Checkpoint]:
    """The checkpoint at `path` of the container `name`, waited for as long as `restore.wait` says (seconds). An
    archive is unpacked for the time of the context.

    Complete is what lies in a folder with the sentinel file, or has our manifest and all that this names. Where files
    stay short and nothing changes any more, it is not complete either, but what looks at it next says so best.

    Refuses checkpoint-path-invalid, checkpoint-path-outside, checkpoint-path-unsafe, container-name-invalid,
    checkpoint-not-found, download-timeout, checkpoint-archive-unreadable.
    """
    root, parts = below(path, restore.roots)
    if name is not None and not usable(name):
        raise refuse("container-name-invalid", name=name)
    end = clock() + restore.wait
    lacking: tuple[tuple[str, int], ...] = ()
    since = clock()
    while True:
        try:
            found = look(root, parts, name)
            break
        except Waiting as waiting:
            left = end - clock()
            if isinstance(waiting, Arriving):
                if waiting.lacking != lacking:
                    lacking, since = waiting.lacking, clock()
                if left <= 0 or clock() - since >= _SETTLED:
                    found = waiting.found
                    break
            elif left <= 0:
                reason = "download-timeout" if restore.wait else "checkpoint-not-found"
                raise refuse(reason, path=path, name=name or "?", wait=restore.wait) from None
            sleep(min(_STEP, left))
    if isinstance(found, Checkpoint):
        yield found
        return
    from grit_runtime.layer.unpacking import unpacked

    with unpacked(found) as folder:
        if not os.path.isfile(f"{folder}/{FOLDER}/{IMAGE}"):
            raise refuse("checkpoint-not-found", path=path, name=name or "?")
        yield checkpoint(f"{folder}/{FOLDER}", folder)


@contextlib.contextmanager
def folder(images: str) -> Iterator[Checkpoint]:
    """The checkpoint whose image folder the caller, who is root, names on the command line: anywhere."""
    images = os.path.abspath(images)
    base, last = os.path.split(images)
    yield checkpoint(images, base if last == FOLDER else images)


def below(path: str, roots: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The configured root that holds `path`, the longest, and the rest of the path in components. Decided by the text
    alone: links below the root are refused later, and the root itself is the admin's."""
    parts = tuple(part for part in path.split("/") if part)
    if not path.startswith("/") or ".." in parts or "." in parts:
        raise refuse("checkpoint-path-invalid", path=path, detail="it is not absolute, or has . or .. in it")
    if not path.isprintable():
        raise refuse("checkpoint-path-invalid", path=path, detail="it has characters that cannot be printed")
    best: tuple[str, ...] | None = None
    for root in roots:
        known = tuple(part for part in root.split("/") if part)
        if parts[: len(known)] == known and (best is None or len(known) > len(best)):
            best = known
    if best is None:
        raise refuse("checkpoint-path-outside", path=path, roots=", ".join(roots))
    return "/" + "/".join(best), parts[len(best) :]


def usable(name: str) -> bool:
    """Whether a container's name can be that of its folder: the image may choose it, where the kubelet doesn't."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable() and len(os.fsencode(name)) <= 255


def look(root: str, parts: tuple[str, ...], name: str | None) -> Checkpoint | str:
    """What is there now: the checkpoint, or the path of an archive. Raises Waiting if it is missing or not complete."""
    real = os.path.realpath(root)
    here = real
    facts = _trusted(here)
    for part in parts:
        here = os.path.join(here, part)
        facts = _trusted(here)
    if stat.S_ISREG(facts.st_mode):
        return here
    inner = [f"{here}/{name}/{FOLDER}"] if name else []
    images = next((images for images in (*inner, f"{here}/{FOLDER}", here) if _has(images, IMAGE)), None)
    arrived = any(_has(place, SENTINEL) for place in _upwards(here, real))
    if images is None or not (arrived or _has(images, MANIFEST)):
        if arrived:
            raise refuse("checkpoint-not-found", path=here, name=name or "?")
        raise Waiting
    base = os.path.dirname(images) if os.path.basename(images) == FOLDER and images != real else images
    for part in dict.fromkeys((base, images)):
        _trusted(part)
    with os.scandir(images) as entries:
        for entry in entries:
            _trusted(entry.path)
    found = checkpoint(images, base)
    for path in filter(None, (found.layer, found.shm)):
        _trusted(path)
    if not arrived and (lacking := _lacking(found)):
        raise Arriving(found, lacking)
    return found


def _lacking(found: Checkpoint) -> tuple[tuple[str, int], ...]:
    """Names of what the manifest lists and isn't there, or is shorter than it says, with the size here (-1: none)."""
    from grit_runtime import manifest

    try:
        listed = manifest.read(found.images)["files"]
    except Refusal:  # the restore will say why, unless it is still being written
        size = _size(f"{found.images}/{MANIFEST}")
        return () if _ends(f"{found.images}/{MANIFEST}", size) else ((MANIFEST, size),)
    beside = {layer.NAME: found.layer, layer.SHM_NAME: found.shm}  # in either place; somebody's own may be smaller
    lacking = []
    for name, facts in listed.items():
        want = facts.get("size") if isinstance(facts, dict) else 0
        have = _size(beside.get(name) or f"{found.images}/{os.path.basename(name)}")
        if have < (0 if name in beside else want if isinstance(want, int) else 0):
            lacking.append((name, have))
    return tuple(lacking)


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1


def _ends(path: str, size: int) -> bool:
    """Whether a file of JSON has its last character."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(fd, 16, max(0, size - 8)).rstrip().endswith(b"}")
    finally:
        os.close(fd)


def checkpoint(images: str, base: str) -> Checkpoint:
    """With the archives that lie among the images, as under `ctr` and CRI, or in the container's folder.

    CRI's CheckpointContainer adds a layer of its own there, without the names that CRIU had made for the dump alone;
    podman adds one without whiteouts, and a /dev/shm of its own that it has filled itself when it calls us.
    """
    places = dict.fromkeys((images, base))
    found = [_first([f"{place}/{name}" for place in places]) for name in (layer.NAME, layer.SHM_NAME)]
    return Checkpoint(images, base, *found)


def _upwards(path: str, root: str) -> list[str]:
    """The folder itself and the two above it, as far as they lie in `root`: one of them is <base>."""
    found = [path]
    while path != root and len(found) < 3:
        path = os.path.dirname(path)
        found.append(path)
    return found


def _first(paths: list[str]) -> str | None:
    return next((path for path in paths if os.path.lexists(path)), None)


def _has(directory: str, name: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(f"{directory}/{name}").st_mode)
    except OSError:
        return False


def _trusted(path: str) -> os.stat_result:
    """Facts of a file that root alone can change; its folder has been found so before. Waiting if it isn't there."""
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Waiting from None
    except OSError as error:
        raise refuse("checkpoint-path-unsafe", path=path, detail=error.strerror) from error
    if not stat.S_ISDIR(facts.st_mode) and not stat.S_ISREG(facts.st_mode):
        raise refuse("checkpoint-path-unsafe", path=path, detail="it is neither a folder nor a file")
    if facts.st_uid != OWNER:
        raise refuse("checkpoint-path-unsafe", path=path, detail=f"its owner is user {facts.st_uid}, not root")
    if facts.st_mode & stat.S_IWOTH or (facts.st_mode & stat.S_IWGRP and facts.st_gid != 0):
        raise refuse("checkpoint-path-unsafe", path=path, detail="others than root can write to it")
    return facts
