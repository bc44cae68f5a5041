"""What a checkpoint holds, read from its images and what lies beside them: plain values, as `gritctl inspect --json`
has them (docs/json.md)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from grit_runtime import manifest as manifests
from grit_runtime.checks import Refusal
from grit_runtime.criu import images
from grit_runtime.ctl import checkpoints

# Where the name of a container's image stands: the CRI's annotation, and what containerd and podman export.
IMAGE = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
EXPORTED = ("rootfsImageName", "rootfsImageRef", "rootfsImage")


def describe(place: checkpoints.Place) -> dict[str, Any]:
    """Everything that is shown. What can't be read is None, and a problem."""
    problems = [_problem(place, refusal) for refusal in images.problems(place.images)]
    found: dict[str, Any] = {"path": place.given, "archive": place.archive, "images": place.images}
    found["manifest"] = _try(lambda: _manifest(place.images), place, problems)
    found["image"] = _image(place, found["manifest"])
    parts: dict[str, Callable[[], Any]] = {
        "inventory": lambda: images.inventory(place.images)._asdict(),
        "processes": lambda: _processes(place),
        "mounts": lambda: _mounts(place.images),
        "files": lambda: _files(place.images),
        "sockets": lambda: [one._asdict() for one in images.sockets(place.images)],
        "watches": lambda: images.watches(place.images),
        "timers": lambda: [one._asdict() for one in images.timers(place.images)],
        "hostname": lambda: images.hostname(place.images),
        "masks": lambda: images.masks(place.images),
        "stats": lambda: stats._asdict() if (stats := _stats(place)) else None,
    }
    for name, part in parts.items():
        found[name] = _try(part, place, problems)
    found["sizes"] = _sizes(place)
    found["problems"] = problems
    return found


def _try(part: Callable[[], Any], place: checkpoints.Place, problems: list[dict[str, str]]) -> Any:
    """What `part` gives, or None and a problem."""
    try:
        return part()
    except Refusal as refusal:
        problem = _problem(place, refusal)
        if problem not in problems:
            problems.append(problem)
        return None


def _problem(place: checkpoints.Place, refusal: Refusal) -> dict[str, str]:
    """Names of files without the folder, which is a temporary one for an archive."""
    return {"reason": refusal.reason, "message": refusal.message.replace(f"{place.images}/", "")}


def _manifest(folder: str) -> dict[str, Any] | None:
    """None for images that grit-runtime didn't make: they have no manifest, and that is no problem here."""
    if not os.path.lexists(os.path.join(folder, manifests.NAME)):
        return None
    return manifests.read(folder)


def _image(place: checkpoints.Place, manifest: dict[str, Any] | None) -> str:
    """The name of the container's image; "" where nobody tells it."""
    notes = (manifest or {}).get("container", {}).get("annotations")
    told = [notes.get(key) for key in IMAGE] if isinstance(notes, dict) else []
    path = place.beside("config.dump")
    exported = checkpoints.read_json(path) if path else {}
    told += [exported.get(key) for key in EXPORTED]
    return next((name for name in told if isinstance(name, str) and name), "")


def _stats(place: checkpoints.Place) -> images.Stats | None:
    return images.stats(place.images) or (images.stats(place.home) if place.home else None)


def _processes(place: checkpoints.Place) -> list[dict[str, Any]]:
    result = []
    for task in images.tasks(place.images):
        memory = images.memory(place.images, task.pid) if task.exe else None
        first = task.credentials[0] if task.credentials else None
        result.append(
            {
                "pid": task.pid,
                "parent": task.parent,
                "comm": task.comm,
                "command": [word for word in memory.arguments if word] if memory else [],
                "exe": task.exe,
                "state": task.state,
                "architecture": task.architecture,
                "threads": len(task.threads),
                "uid": first.uid if first else None,
                "gid": first.gid if first else None,
                "capabilities": first.capabilities._asdict() if first else None,
                "no_new_privs": first.no_new_privs if first else None,
                "seccomp": first.seccomp if first else None,
                "lsm": first.lsm if first else None,
                "mapped": memory.mapped if memory else 0,
                "stored": memory.stored if memory else 0,
            }
        )
    return result


def _mounts(folder: str) -> list[dict[str, Any]]:
    rows = []
    for mount in sorted(images.mounts(folder), key=lambda one: one.mountpoint):
        role = "root" if mount.mountpoint == "/" else "mask" if images.mask(mount) else ""
        role = role or ("external" if mount.external else "made anew")
        rows.append({**mount._asdict(), "role": role})
    return rows


def _files(folder: str) -> list[dict[str, Any]]:
    gone = {one.name: one for one in images.remaps(folder)}
    rows = []
    for file in images.open_files(folder):
        deleted = gone[file.name].kind if file.name in gone and file.kind == "file" else None
        row = {"id": file.id, "kind": file.kind, "name": file.name, "size": file.size}
        rows.append({**row, "external": file.external, "deleted": deleted})
    return rows


def _sizes(place: checkpoints.Place) -> dict[str, Any]:
    """Bytes by part: memory, GPU memory past CRIU, tmpfs contents, other images, rootfs changes, shared memory."""
    parts: Counter[str] = Counter()
    for folder in dict.fromkeys((place.images, place.home)):
        for name in os.listdir(folder):
            facts = os.lstat(os.path.join(folder, name))
            if manifests.of_a_dump(name) or manifests.is_gpu_memory(name):
                parts[_part(name)] += facts.st_size
    return {"total": sum(parts.values()), "parts": [{"part": k, "bytes": v} for k, v in parts.most_common()]}


def _part(name: str) -> str:
    if name == "rootfs-diff.tar":
        return "rootfs changes"
    if name == "shm.tar":
        return "/dev/shm"
    if name.startswith("pages-"):
        return "memory"
    if manifests.is_gpu_memory(name):
        return "GPU memory"
    return "tmpfs and deleted files" if name.startswith(("tmpfs-", "ghost-file-")) else "descriptions"
