"""Containers of this node by whatever name a person has for them: found in the state folders of the runtimes.

runc keeps ROOT/ID/state.json, crun ROOT/ID/status; containerd, podman, CRI-O, docker and k3s each give them a root of
their own. Names are in the annotations of the bundle's config.json, and for podman and docker in their own records.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from grit_runtime.checks import refuse

ROOTS = (
    "/run/containerd/runc/*",
    "/run/k3s/containerd/runc/*",
    "/run/runc",
    "/run/crun",
    "/run/docker/runtime-runc/*",
    "/run/user/*/runc",
    "/run/user/*/crun",
)
# Annotations that name a container or its pod: containerd's CRI, CRI-O, nerdctl, podman.
CONTAINER_NAMES = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name", "io.podman.name")
POD_NAMES = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
POD_SPACES = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
SANDBOX = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
RECORDS = "/var/lib/containers/storage/overlay-containers/containers.json"  # podman's and CRI-O's
DOCKER = "/var/lib/docker/containers"
SHORTEST = 4  # characters of an id that count as its beginning


class Container(NamedTuple):
    """A running container. `root`: its runtime's state folder; `names`: what it is called, its pod's name included."""

    id: str
    root: str
    pid: int
    bundle: str
    names: tuple[str, ...]
    spec: dict[str, Any]


def states(folder: str) -> tuple[int, str]:
    """(pid, bundle) of one container's state folder; (0, "") if it isn't one, or not running."""
    try:
        with open(f"{folder}/state.json") as file:
            state = json.load(file)
        labels = dict(label.split("=", 1) for label in state["config"].get("labels") or () if "=" in label)
        return int(state["init_process_pid"]), str(labels.get("bundle", ""))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        with open(f"{folder}/status") as file:
            state = json.load(file)
        return int(state["pid"]), str(state["bundle"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def read_spec(bundle: str) -> dict[str, Any]:
    """The bundle's config.json; {} where it can't be read."""
    try:
        with open(f"{bundle}/config.json") as file:
            spec = json.load(file)
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}


def running(roots: Iterable[str] = ROOTS) -> list[Container]:
    """All containers of this node that have a process, without their names."""
    found = []
    for root in sorted({place for pattern in roots for place in glob.glob(pattern)}):
        for id in sorted(os.listdir(root)):
            pid, bundle = states(f"{root}/{id}")
            if pid and os.path.exists(f"/proc/{pid}"):
                found.append(Container(id, root, pid, bundle, (), {}))
    return found


def names_of(spec: dict[str, Any]) -> tuple[str, ...]:
    """What annotations call a container: its own name, its pod's, and NAMESPACE/POD and POD/CONTAINER."""
    notes = spec.get("annotations") or {}
    own = [notes[key] for key in CONTAINER_NAMES if notes.get(key)]
    pods = [notes[key] for key in POD_NAMES if notes.get(key)]
    spaces = [notes[key] for key in POD_SPACES if notes.get(key)]
    joined = [f"{space}/{pod}" for space in spaces for pod in pods] + [f"{pod}/{name}" for pod in pods for name in own]
    return tuple(dict.fromkeys([*own, *pods, *joined]))


def is_sandbox(spec: dict[str, Any]) -> bool:
    """Whether it is a pod's pause container, which is never checkpointed."""
    return any((spec.get("annotations") or {}).get(key) == "sandbox" for key in SANDBOX)


def find(wanted: str, root: str = "") -> list[Container]:
    """The containers that `wanted` means: one by its id or its id's beginning, else all of that name or pod.

    Refuses `container-not-found` and `container-ambiguous` (two containers of different pods or roots have that name).
    """
    every = running([root] if root else ROOTS)
    by_id = [one for one in every if one.id == wanted]
    by_id = by_id or [one for one in every if len(wanted) >= SHORTEST and one.id.startswith(wanted)]
    found = [_known(one) for one in by_id]
    if not found:
        records = _recorded(wanted)
        known = [_known(one) for one in every]
        found = [one for one in known if wanted in one.names or one.id in records]
        found = [one for one in found if not is_sandbox(one.spec)]
    if not found:
        raise refuse("container-not-found", name=wanted, count=len(every))
    if len({_pod(one) for one in found}) > 1:
        raise refuse("container-ambiguous", name=wanted, ids=", ".join(one.id[:13] for one in found))
    return found


def _known(container: Container) -> Container:
    spec = read_spec(container.bundle)
    return container._replace(spec=spec, names=names_of(spec))


def _pod(container: Container) -> str:
    notes = container.spec.get("annotations") or {}
    for space, pod in zip(POD_SPACES, POD_NAMES, strict=True):
        if notes.get(pod):
            return f"{notes.get(space)}/{notes[pod]}"
    return container.id


def _recorded(wanted: str) -> set[str]:
    """Ids that podman, CRI-O or docker know by this name."""
    found = set()
    try:
        with open(RECORDS) as file:
            found |= {str(row["id"]) for row in json.load(file) if wanted in (row.get("names") or ())}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for path in glob.glob(f"{DOCKER}/*/config.v2.json"):
        try:
            with open(path) as file:
                if str(json.load(file).get("Name", "")).lstrip("/") == wanted:
                    found.add(os.path.basename(os.path.dirname(path)))
        except (OSError, ValueError, AttributeError):
            continue
    return found


def by_process(pid: int) -> Container:
    """The container that a process is in; without one, the process and its descendants taken as one, with no spec.

    Refuses `process-not-found`.
    """
    try:
        space = os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        raise refuse("process-not-found", pid=pid) from None
    for container in running():
        try:
            if os.readlink(f"/proc/{container.pid}/ns/pid") == space and _within(pid, container.pid):
                return _known(container)
        except OSError:
            continue
    return Container(str(pid), "", pid, "", (), {})


def _within(pid: int, top: int) -> bool:
    """Whether both are in the same control groups, or the first one's are below the other's."""
    inner, outer = _groups(pid), _groups(top)
    return all((path + "/").startswith(outer[name].rstrip("/") + "/") for name, path in inner.items() if name in outer)


def _groups(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/cgroup") as file:
        return {line.split(":")[1]: line.rstrip("\n").split(":", 2)[2] for line in file}


def descendants(pid: int, parents: Sequence[tuple[int, int]] | None = None) -> list[int]:
    """A process and all that descend from it; `parents`: pairs (pid, its parent), by default all of /proc."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents() if parents is None else parents:
        children.setdefault(parent, []).append(child)
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, ())
    return sorted(found)


def _parents() -> list[tuple[int, int]]:
    from grit_runtime.look import proc

    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append((int(name), proc.stat(proc.read(f"/proc/{name}/stat"))[2]))
            except OSError:
                continue
    return found
