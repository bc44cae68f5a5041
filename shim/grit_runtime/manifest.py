"""grit.json: what a checkpoint says of itself and of the node it came from.

It is written last and by rename, so images without it are not a checkpoint. On a restore it is untrusted input: it
gives values to compare with this node's and keys to look up, never a path to mount or a thing to do.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from grit_runtime import VERSION, layer
from grit_runtime.checks import refuse

NAME = "grit.json"
FORMAT = 2  # 1: nothing in gpu.beside
PIECE = 4 << 20
LIMIT = 64 << 20  # a manifest larger than this isn't one


def of_a_dump(name: str) -> bool:
    """Is this the name of a file that CRIU, its caller or the saving of the rw layer makes in an image folder?"""
    return name.endswith(".img") or name in (layer.NAME, layer.SHM_NAME, "descriptors.json")


def gpu_memory(pid: int, number: int) -> str:
    """The name of a file beside CRIU's images with memory of the GPU process that is `pid` in its container."""
    return f"gpu-{pid}-{number}.mem"


def is_gpu_memory(name: str) -> bool:
    """Is this one of `gpu_memory`'s names?"""
    return name.startswith("gpu-") and name.endswith(".mem")


def node() -> dict[str, str]:
    """What of this node a restore elsewhere depends on; versions of programs are added by the caller."""
    known = os.uname()
    return {
        "hostname": known.nodename,
        "kernel": known.release,
        "arch": known.machine,
        "cpu": " ".join(sorted(cpu_flags())),
    }


def cpu_flags(path: str = "/proc/cpuinfo") -> set[str]:
    """Feature flags of the first processor (`flags` on x86, `Features` on arm64)."""
    with open(path) as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(value.split())
    return set()


def write(folder: str, content: dict[str, Any]) -> None:
    """Write the manifest of the images in `folder`, whole or not at all.

    It isn't synced, as CRIU's images aren't: after a crash of the machine the sums tell what of both is there.
    """
    # An older version must not restore a container without the memory that it doesn't know of.
    form = FORMAT if content.get("gpu", {}).get("beside") else 1
    value = {"format": form, "grit_runtime": VERSION, **content}
    path = f"{folder}/{NAME}"
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(json.dumps(value))  # without line breaks: the encoder that makes them is ten times slower
    os.rename(path + ".new", path)


def read(folder: str) -> dict[str, Any]:
    """The manifest in `folder`. Refuses `manifest-missing`, `manifest-future`, `manifest-broken`."""
    path = f"{folder}/{NAME}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise refuse("manifest-missing", path=folder) from None
    except OSError as error:
        raise refuse("manifest-broken", path=path, error=error.strerror) from None
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LIMIT:
            raise refuse("manifest-broken", path=path, error="not a file of a sensible size")
        return parse(file.read(), path)


def parse(data: bytes, path: str) -> dict[str, Any]:
    """The manifest's text as a dict whose parts have the types that the rest of us relies on."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refuse("manifest-broken", path=path, error=error) from None
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise refuse("manifest-broken", path=path, error="no format number")
    if value["format"] > FORMAT:
        raise refuse("manifest-future", path=path, format=value["format"], known=FORMAT)
    for name, kind in SHAPE.items():
        if not isinstance(value.get(name), kind):
            raise refuse("manifest-broken", path=path, error=f"{name} is missing or of another type")
    for name in ("kernel", "arch", "cpu", "criu", "runtime"):
        if not isinstance(value["node"].get(name), str):
            raise refuse("manifest-broken", path=path, error=f"node.{name} is missing or of another type")
    if not all(isinstance(row, dict) for row in value["mounts"]):
        raise refuse("manifest-broken", path=path, error="mounts has what is no mount")
    files = value.setdefault("external_files", [])
    if not isinstance(files, list) or not all(map(_three_numbers, files)):
        raise refuse("manifest-broken", path=path, error="external_files has what is no file")
    return value


def _three_numbers(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(type(one) is int and 0 <= one < 1 << 64 for one in row)


SHAPE: dict[str, type] = {"node": dict, "container": dict, "files": dict, "mounts": list, "watches": dict,
                          "fingerprints": dict, "gpu": dict}  # fmt: skip


class Sums:
    """Sizes and checksums of the files in a folder, made while they are being written.

    Image files only grow, so a piece that lies below a file's end is final. A thread of ours sums such pieces up while
    CRIU writes the next ones; zlib lets go of the interpreter's lock meanwhile.
    """

    def __init__(self, folder: str) -> None:
        import threading

        self._folder = folder
        self._pieces: dict[str, list[str]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def finish(self, names: Iterable[str], known: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
        """Name to {"size": bytes, "pieces": [CRC-32 of each 4 MiB]} of the files `names`, which nobody writes now.
        `known`: pieces of files that somebody else has summed up."""
        self._done.set()
        self._thread.join()
        return sums(self._folder, names, {**self._pieces, **known})

    def stop(self) -> None:
        """Hash no more: the files are no checkpoint."""
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(0.005):
            try:
                for name in os.listdir(self._folder):
                    if name.startswith("pages-"):
                        self._catch_up(name)
            except OSError:
                return  # `finish` meets it again, where somebody hears of it

    def _catch_up(self, name: str) -> None:
        known = self._pieces.setdefault(name, [])
        path = f"{self._folder}/{name}"
        while not self._done.is_set() and os.stat(path).st_size >= (len(known) + 1) * PIECE:
            known.append(_sum(path, len(known) * PIECE))


def sums(folder: str, names: Iterable[str], known: dict[str, list[str]] | None = None) -> dict[str, dict[str, Any]]:
    """Name to {"size": bytes, "pieces": [CRC-32 of each 4 MiB]} of files in `folder`; all cores work.

    `known`: pieces that were summed up before, from each file's beginning on.
    """
    import threading

    found: dict[str, dict[str, Any]] = {}
    work: list[tuple[list[str], int, str, int]] = []
    for name in sorted(names):
        path = f"{folder}/{name}"
        size = os.stat(path, follow_symlinks=False).st_size
        count = max(1, -(-size // PIECE))
        pieces = (known or {}).get(name, [])[:count]
        pieces += [""] * (count - len(pieces))
        found[name] = {"size": size, "pieces": pieces}
        work += [(pieces, number, path, number * PIECE) for number in range(count) if not pieces[number]]

    def some() -> None:
        while work:
            try:
                pieces, number, path, start = work.pop()
            except IndexError:
                return
            pieces[number] = _sum(path, start)

    threads = [threading.Thread(target=some) for _ in range(min(os.cpu_count() or 1, len(work)) - 1)]
    for thread in threads:
        thread.start()
    some()
    for thread in threads:
        thread.join()
    return found


def differences(folder: str, files: dict[str, Any], *, content: bool) -> list[tuple[str, str]]:
    """What of the manifest's `files` is otherwise in `folder`: (name, "missing"|"size"|"content"|"name")."""
    found, same = [], []
    for name, facts in files.items():
        if "/" in name or name in ("", ".", "..") or not isinstance(facts, dict):
            found.append((name, "name"))
            continue
        try:
            seen = os.stat(f"{folder}/{name}", follow_symlinks=False)
        except OSError:
            found.append((name, "missing"))
            continue
        if not stat.S_ISREG(seen.st_mode):
            found.append((name, "name"))
        elif seen.st_size != facts.get("size"):
            found.append((name, "size"))
        else:
            same.append(name)
    if content:
        live = sums(folder, same)
        found += [(name, "content") for name in same if live[name]["pieces"] != files[name].get("pieces")]
    return found


def _sum(path: str, start: int) -> str:
    """CRC-32 (zlib's) of the piece that begins at `start`, as 8 hexadecimal digits.

    It finds what was damaged or mixed up on the way. A manifest that lies beside its images proves nothing against
    somebody who changes both, so a stronger sum would buy nothing, and SHA-256 takes as long as CRIU takes to write.
    """
    import zlib

    total = 0
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        end = start + PIECE
        view = memoryview(bytearray(min(1 << 19, max(1, os.fstat(fd).st_size - start))))
        while start < end and (count := os.preadv(fd, [view[: end - start]], start)):
            total = zlib.crc32(view[:count], total)
            start += count
    finally:
        os.close(fd)
    return f"{total:08x}"
