"""Where a checkpoint's parts are, given a folder, an archive, a log or an id.

Layouts (docs/design.md): `<base>/<container>/checkpoint/` with the images, as grit-runtime, GRIT and containerd write
it; the image folder alone, as `ctr` and `runc` do; a tar of the first, as containerd and podman export it; a folder of
kept logs. Nothing of an archive is trusted: only plain files with known names are taken out, into a private folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from grit_runtime import records
from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu.imagefile import open_file

SMALL = 64 << 20  # bytes of a file that is taken out of an archive; pages beyond that are only counted
TOTAL = 1 << 30
MEMBERS = 200_000
LOGS = ("dump.log", "restore.log", "criu-dump.log", "criu-restore.log")
BESIDE = ("config.dump", "spec.dump", "status.dump", "stats-dump", *LOGS[:2], "rootfs-diff.tar", "shm.tar")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


class Place(NamedTuple):
    """`given` as the person named it. `home` holds the parts beside the images. Empty: isn't there."""

    given: str
    home: str
    images: str
    logs: list[str]
    record: dict[str, Any]
    archive: bool

    def beside(self, name: str) -> str:
        """The path of a part, beside the images or among them; empty if there is none."""
        for folder in (self.home, self.images):
            if folder and os.path.isfile(path := os.path.join(folder, name)) and not os.path.islink(path):
                return path
        return ""


@contextlib.contextmanager
def opened(given: str) -> Iterator[Place]:
    """The place of a checkpoint; an archive is unpacked for the time of the block. Refuses `checkpoint-unknown`."""
    path = os.path.abspath(given)
    if os.path.isdir(path):
        yield _folder(given, path)
    elif os.path.isfile(path) and not path.endswith(".log") and _is_archive(path):
        scratch = tempfile.mkdtemp(prefix="gritctl-")
        try:
            unpack(path, scratch)
            yield _folder(given, scratch)._replace(archive=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    elif os.path.exists(path):
        around = _folder(given, os.path.dirname(path))
        yield around._replace(logs=[path], record={})
    elif "/" not in given and (kept := records.listing(given)):
        yield Place(given, kept[0].folder, "", kept[0].logs(), kept[0].record(), False)
    else:
        raise refuse("checkpoint-unknown", path=given)


def _folder(given: str, path: str) -> Place:
    images = next((folder for folder in (path, os.path.join(path, "checkpoint")) if _holds_images(folder)), "")
    home = path
    if images == path and os.path.basename(path) == "checkpoint":
        home = os.path.dirname(path)
    record: dict[str, Any] = {}
    if os.path.isfile(os.path.join(path, "record.json")):
        record = read_json(os.path.join(path, "record.json"))
    logs = [os.path.join(folder, name) for folder in dict.fromkeys((images, home)) if folder for name in _logs(folder)]
    return Place(given, home, images, logs, record, False)


def read_json(path: str) -> dict[str, Any]:
    """A JSON object; {} when there is none that can be read."""
    try:
        with open_file(path) as file:
            value = json.loads(file.read(SMALL))
    except (Refusal, OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def unpack(path: str, target: str) -> None:
    """Take what inspect needs out of a tar, compressed or not. Large pages become holes of the same size.

    Refuses `archive-unreadable`.
    """
    room, seen = TOTAL, 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                seen += 1
                if seen > MEMBERS:
                    raise refuse("archive-unreadable", path=path, error=f"it has more than {MEMBERS} members")
                name = _wanted(member.name)
                if not name or not member.isreg() or member.size < 0:
                    continue
                source = archive.extractfile(member)
                out = os.path.join(target, name)
                if source is None or os.path.lexists(out):
                    continue
                os.makedirs(os.path.dirname(out), mode=0o700, exist_ok=True)
                with open(out, "xb") as file:
                    if member.size <= min(SMALL, room):
                        room -= member.size
                        shutil.copyfileobj(source, file)
                    else:
                        file.truncate(member.size)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise refuse("archive-unreadable", path=path, error=error) from error


def _wanted(name: str) -> str:
    """Where a member goes below the target; empty for what isn't wanted. Never more than one folder deep."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or len(parts) > 3 or not all(NAME.fullmatch(part) for part in parts):
        return ""
    if len(parts) >= 2 and parts[-2] == "checkpoint":
        return f"checkpoint/{parts[-1]}"
    return parts[-1] if parts[-1] in BESIDE else ""


def _is_archive(path: str) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


def _holds_images(folder: str) -> bool:
    try:
        return any(name.endswith(".img") for name in os.listdir(folder))
    except OSError:
        return False


def _logs(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name in LOGS or name.endswith(".log") and "criu" in name)
    except OSError:
        return []
