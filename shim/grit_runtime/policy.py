"""What a pod may ask for by its annotations, and whether it has had it already.

A pod's author is not the node's admin: each value here is written by somebody who may mean harm, and gets no further
than the configuration lets it. Annotations `grit.dev/...` that mean nothing here are left alone: GRIT's own manager
puts some on its pods (`restore-name`, `pod-spec-hash`). What a pod writes into `org.criu.config` never counts, as
`live.with_criu_config` replaces it.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from grit_runtime.checks import refuse
from grit_runtime.settings import Settings

CHECKPOINT, ALLOW = "grit.dev/checkpoint", "grit.dev/allow"
MARKS = "/run/grit-runtime/used"
_SANDBOX = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
_RESTARTS = "io.kubernetes.container.restartCount"
_LENGTH = 4096  # PATH_MAX


class Wish(NamedTuple):
    """`path`: where the pod says that its checkpoint is, not yet looked at. `allow`: the reasons that are not to stop
    the restore, all of them permitted by the configuration."""

    path: str
    allow: frozenset[str] = frozenset()


class Place(NamedTuple):
    """Which container of which pod a spec is for."""

    sandbox: str
    name: str


def wish(spec: dict[str, Any], settings: Settings) -> Wish | None:
    """The restore that the spec asks for, or None. Refuses annotation-invalid, allow-not-permitted."""
    notes = spec.get("annotations") or {}
    path = notes.get(CHECKPOINT)
    if path is None or path == "":
        return None
    if not isinstance(path, str) or len(path) > _LENGTH:
        raise refuse("annotation-invalid", key=CHECKPOINT, detail="it must be one path")
    return Wish(path, allowed(notes.get(ALLOW, ""), settings.restore.allow))


def allowed(text: object, permitted: tuple[str, ...]) -> frozenset[str]:
    """The reasons in an annotation, which are separated by commas or spaces; each must be among those `permitted`."""
    if not isinstance(text, str):
        raise refuse("annotation-invalid", key=ALLOW, detail="it must be a list of reasons")
    asked = frozenset(text.replace(",", " ").split())
    if asked - set(permitted):
        raise refuse("allow-not-permitted", asked=", ".join(sorted(asked - set(permitted))))
    return asked


def place(spec: dict[str, Any]) -> Place | None:
    """The pod and container that the spec is for; None outside of Kubernetes, or where names cannot be file names."""
    from grit_runtime.spec import container_name

    notes = spec.get("annotations") or {}
    sandbox = next((notes[key] for key in _SANDBOX if isinstance(notes.get(key), str)), "")
    name = container_name(spec) or ""
    return Place(sandbox, name) if _component(sandbox) and _component(name) else None


def used(spec: dict[str, Any], wanted: Wish, marks: str = MARKS) -> bool:
    """Whether this container of this pod has been restored from `wanted` before: then it is started anew, as the
    kubelet wants a container that ended.

    A restart count tells where containerd hands it on, but a first restore that failed also raises it. So an attempt
    of this pod that did not succeed (`mark_tried`) lets it try again.
    """
    where = place(spec)
    if where is None:
        return False
    mark = _read(where, marks)
    if mark is None:
        return str((spec.get("annotations") or {}).get(_RESTARTS, "0")).strip() not in ("", "0")
    state, _, path = mark.partition(" ")
    return state == "used" and path == wanted.path


def mark_tried(spec: dict[str, Any], wanted: Wish, marks: str = MARKS) -> None:
    """Note that the restore is being tried; called before it."""
    _mark(spec, f"tried {wanted.path}", marks)


def mark_used(spec: dict[str, Any], wanted: Wish, marks: str = MARKS) -> None:
    """Note that the container is restored; called when it is."""
    _mark(spec, f"used {wanted.path}", marks)


def marked(sandbox: str, marks: str = MARKS) -> bool:
    """Whether there are marks of the pod whose sandbox has this ID; the entry asks so too."""
    return _component(sandbox) and os.path.isdir(os.path.join(marks, sandbox))


def forget(sandbox: str, marks: str = MARKS) -> None:
    """Undoes all marks of a pod: when its sandbox is deleted."""
    import shutil

    if _component(sandbox):
        shutil.rmtree(os.path.join(marks, sandbox), ignore_errors=True)


def _mark(spec: dict[str, Any], text: str, marks: str) -> None:
    where = place(spec)
    if where is None:
        return
    folder = os.path.join(marks, where.sandbox)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    scratch = f"{folder}/.{os.getpid()}"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.rename(scratch, os.path.join(folder, where.name))


def _read(where: Place, marks: str) -> str | None:
    try:
        with open(os.path.join(marks, *where), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _component(name: str) -> bool:
    """Whether a name from a pod can be the name of one file, and not a hidden one."""
    return 0 < len(os.fsencode(name)) <= 255 and not name.startswith(".") and name.isprintable() and "/" not in name
