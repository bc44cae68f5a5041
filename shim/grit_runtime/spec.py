"""A bundle's config.json (the OCI runtime specification): read, ask, write."""

from __future__ import annotations

import os
import stat
from typing import Any

from grit_runtime.checks import refuse

Spec = dict[str, Any]
SIZE_LIMIT = 64 << 20  # bytes; a spec of a thousand mounts has a third of one MiB

# Where container managers keep their name for a container, and whether it is the pod's sandbox.
_NAMES = (
    "io.kubernetes.cri.container-name",  # containerd's CRI
    "io.kubernetes.container.name",  # the kubelet's label, handed on by CRI-O
    "io.podman.annotations.container-name",
)
_TYPES = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


def read(bundle: str) -> Spec:
    """The spec in the folder `bundle`. Refuses `bundle-unreadable`, `config-not-json`."""
    import json

    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise refuse("bundle-unreadable", path=path, error=error.strerror) from error
    if len(content) > SIZE_LIMIT:
        raise refuse("config-not-json", path=path, error=f"longer than {SIZE_LIMIT} bytes")
    try:
        spec = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refuse("config-not-json", path=path, error=error) from error
    if not isinstance(spec, dict):
        raise refuse("config-not-json", path=path, error="it holds something else")
    return spec


def write(bundle: str, spec: Spec) -> None:
    """Put `spec` in the place of the one in `bundle`: whole or not at all, with its owner and mode kept.

    Compact, as containerd writes it, and in UTF-8. Refuses `bundle-unwritable`.
    """
    import json

    content = json.dumps(spec, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    path = os.path.join(bundle, "config.json")
    scratch = f"{path}.{os.getpid()}"
    try:
        old = os.stat(path)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                os.fchown(fd, old.st_uid, old.st_gid)
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
                file.write(content)
            os.rename(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        raise refuse("bundle-unwritable", path=path, error=error.strerror) from error


def notes(spec: Spec) -> dict[str, str]:
    """The spec's annotations; anything in them that is not a string to a string is left out."""
    found = spec.get("annotations")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def container_name(spec: Spec) -> str | None:
    """The name that the pod, or the person, gave to the container; None where its manager tells none."""
    known = notes(spec)
    return next((known[key] for key in _NAMES if known.get(key)), None)


def is_sandbox(spec: Spec) -> bool:
    """Whether this is a pod's sandbox (its pause container), which is never worked on."""
    known = notes(spec)
    return any(known.get(key) == "sandbox" for key in _TYPES)


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether an entry of `mounts` is a bind mount, as runc decides it."""
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or []))


def bind_source(spec: Spec, destination: str) -> str | None:
    """The source of the bind mount at `destination`; None where there is no bind."""
    for mount in spec.get("mounts") or []:
        if mount.get("destination") == destination and is_bind(mount):
            return str(mount["source"])
    return None
