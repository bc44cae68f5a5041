"""What the live spec and the live namespaces say, which a restore obeys whatever the images hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Any, NamedTuple

from grit_runtime.beneath import open_in_root

STATIC = "/usr/share/grit-runtime/criu.conf"
_FILES = {"network": "net", "mount": "mnt"}  # in /proc/PID/ns; the other kinds have the spec's names there


def with_criu_config(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with our CRIU configuration named in it, whatever a pod wrote there: that file can name code to run."""
    return {**spec, "annotations": {**(spec.get("annotations") or {}), "org.criu.config": STATIC}}


class Namespaces(NamedTuple):
    """The spec's namespaces by type: path of the one to join, or "" for a new one. What isn't there is the host's."""

    paths: dict[str, str]

    def own(self, kind: str) -> bool:
        """Whether the container gets a new namespace of this kind."""
        return self.paths.get(kind) == ""

    def joined(self, kind: str) -> bool:
        """Whether it joins one that somebody else made: a pod's, usually."""
        return bool(self.paths.get(kind))


def namespaces(spec: dict[str, Any]) -> Namespaces:
    """The namespaces that `spec` asks for (OCI runtime spec, linux.namespaces)."""
    entries = (without_nodes_namespaces(spec).get("linux") or {}).get("namespaces") or []
    return Namespaces({entry["type"]: entry.get("path") or "" for entry in entries})


def without_nodes_namespaces(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without the namespaces that are the node's own: containerd has the container of a pod with hostPID or
    hostIPC join its sandbox's, and these are no other."""
    linux = spec.get("linux") or {}
    apart = [entry for entry in linux.get("namespaces") or [] if not _ours(entry)]
    return {**spec, "linux": {**linux, "namespaces": apart}}


def _ours(entry: dict[str, Any]) -> bool:
    kind = entry["type"]
    try:
        return os.path.samefile(entry.get("path") or "", f"/proc/self/ns/{_FILES.get(kind, kind)}")
    except OSError:
        return False  # the runtime will say what is wrong with it


def hostname(spec: dict[str, Any]) -> str | None:
    """The hostname that the container is to have; None in the host's own namespace."""
    known = namespaces(spec)
    if known.joined("uts"):
        return _hostname_in(known.paths["uts"])
    if known.own("uts"):
        return spec.get("hostname") or os.uname().nodename  # a new uts namespace begins as a copy of its maker's
    return None


def _hostname_in(path: str) -> str:
    """The nodename in the uts namespace that `path` names."""
    from grit_runtime.namespaces import enter

    return enter(path, lambda: os.uname().nodename.encode()).decode()


def devices(pid: int, spec: dict[str, Any]) -> list[str]:
    """Give the container's /dev the device files of the live spec with this node's numbers; returns those that changed.

    The images' /dev is a tmpfs with the other node's numbers in it. Paths are opened as the container would.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [entry["path"] for entry in wanted_devices(spec) if _device(root, entry)]
    finally:
        os.close(root)


def wanted_devices(spec: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Character and block devices of the spec that aren't also the destination of a bind mount."""
    binds = {mount.get("destination") for mount in spec.get("mounts") or []}
    for entry in (spec.get("linux") or {}).get("devices") or []:
        if entry.get("type") in ("c", "u", "b") and entry["path"] not in binds:
            yield entry


def _device(root: int, entry: dict[str, Any]) -> bool:
    folder, name = os.path.split(entry["path"])
    kind = stat.S_IFBLK if entry["type"] == "b" else stat.S_IFCHR
    number = os.makedev(entry["major"], entry["minor"])
    try:
        parent = open_in_root(root, folder, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        try:
            seen = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_IFMT(seen.st_mode) == kind and seen.st_rdev == number:
                return False
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        os.mknod(name, kind, number, dir_fd=parent)
        mode = entry.get("fileMode")
        os.chown(name, entry.get("uid") or 0, entry.get("gid") or 0, dir_fd=parent, follow_symlinks=False)
        os.chmod(f"/proc/self/fd/{parent}/{name}", 0o666 if mode is None else mode)
        return True
    finally:
        os.close(parent)
