"""What a container's mounts are, by its spec: which the runtime made, which came from elsewhere. Everything but the
default of `init_mounts` is pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from grit_runtime.mounts.mountinfo import Mount, below, read
from grit_runtime.spec import is_bind

Spec = dict[str, Any]
Resolve = Callable[[str], str]

# Filesystems that CRIU mounts anew by their type (criu/mount.c, fstypes[]), as opposed to what needs a host's source.
RECREATED = frozenset({
    "proc", "sysfs", "devpts", "mqueue", "tmpfs", "devtmpfs", "securityfs", "debugfs", "tracefs", "fusectl", "pstore",
    "binfmt_misc",
})  # fmt: skip
NULL = "/dev/null"  # what runc calls every masked file of an image


def looks_nvidia(destination: str) -> bool:
    """Whether a destination is one that NVIDIA's container toolkit adds."""
    name = posixpath.basename(destination)
    return "nvidia" in destination.lower() or name.startswith(
        ("libcuda.so", "libcudadebugger.so", "libnvcuvid.so", "libnvoptix.so", "nvoptix.bin", "libnvsandbox")
    )


class Known(NamedTuple):
    """What a spec says of the mounts, destinations resolved: the entries by destination, devices, masks."""

    entries: dict[str, dict[str, Any]]
    devices: set[str]
    masked: set[str]
    readonly: set[str]
    cgroups: set[str]

    def names(self, point: str) -> bool:
        """Whether the spec has an entry for what is mounted at `point`; for cgroup mounts also those below it."""
        return point in self.entries or point in self.devices or any(below(point, top) for top in self.cgroups)


def same(path: str) -> str:
    return path


def known(spec: Spec, resolve: Resolve = same) -> Known:
    """What the spec says; `resolve` is `inside` for the container's root."""
    linux = spec.get("linux") or {}
    entries = {resolve(e["destination"]): e for e in spec.get("mounts") or () if e.get("destination")}
    return Known(
        entries,
        {resolve(d["path"]) for d in linux.get("devices") or () if d.get("path")},
        {posixpath.normpath(p) for p in linux.get("maskedPaths") or ()},
        {posixpath.normpath(p) for p in linux.get("readonlyPaths") or ()},
        {point for point, entry in entries.items() if entry.get("type") in ("cgroup", "cgroup2")},
    )


def foreign(mounts: Sequence[Mount], spec: Known, host: Iterable[Mount]) -> list[Mount]:
    """Mounts that no entry of the spec names and that CRIU can't make anew: their content is the host's.

    They are what hooks and people bind into a running container, and mounts that came along in an rbind. CRIU says
    `doesn't have a proper root mount` of each that isn't named external (criu/mount.c, validate_mounts).
    """
    host_devices = {mount.dev for mount in host}
    tops = [m for m in mounts if m.point == "/"][-1:]
    for mount in mounts:
        anew = mount.root == "/" and mount.point != "/" and mount.fstype in RECREATED and not spec_bind(mount, spec)
        if anew and (mount.fstype != "tmpfs" or mount.dev not in host_devices):
            tops.append(mount)
    own: dict[str, list[str]] = {}
    for top in tops:
        own.setdefault(top.dev, []).append(top.root)
    return [
        mount
        for mount in mounts
        if mount.point != "/"
        and not spec.names(mount.point)
        and mount.point not in spec.masked
        and not any(below(mount.root, root) for root in own.get(mount.dev, ()))
        and not _new_overlay(mount, host_devices)
    ]


def spec_bind(mount: Mount, spec: Known) -> bool:
    """Whether a bind entry of the spec made this mount."""
    entry = spec.entries.get(mount.point)
    return entry is not None and is_bind(entry)


def _new_overlay(mount: Mount, host_devices: Collection[str]) -> bool:
    return mount.fstype == "overlay" and mount.root == "/" and mount.dev not in host_devices


def dump_externals(
    mountinfo: Sequence[Mount], spec: Spec, init_mounts: Iterable[Mount] | None = None, resolve: Resolve = same
) -> list[tuple[str, str]]:
    """Pairs (mountpoint, key in the image) for CRIU's `external mnt[MOUNTPOINT]:KEY` that the runtime doesn't give.

    `init_mounts`: the host's own mounts, to tell a tmpfs of the container from one of the host; None reads ours.
    """
    host = read("self") if init_mounts is None else init_mounts
    return [(m.point, m.point) for m in foreign(mountinfo, known(spec, resolve), host)]


def describe(
    mountinfo: Sequence[Mount],
    spec: Spec,
    init_mounts: Iterable[Mount] | None = None,
    resolve: Resolve = same,
    *,
    is_dir: Callable[[str], bool] | None = None,
    runtime: str = "runc",
) -> list[dict[str, Any]]:
    """The mounts for the manifest: destination, role, fstype, key (the one in the image, or None) and kind.

    Roles: "spec" and "injected" (in the spec, by NVIDIA's toolkit as far as its name tells), "masked" (masked and
    read-only paths), "foreign" (content of the host behind the spec), "hook" (behind the spec, CRIU makes it anew).
    """
    facts = known(spec, resolve)
    host = read("self") if init_mounts is None else init_mounts
    strangers = {mount.id for mount in foreign(mountinfo, facts, host)}
    rows = []
    for mount in mountinfo:
        if mount.point == "/":
            continue
        key = None
        if facts.names(mount.point):
            role = "injected" if looks_nvidia(mount.point) else "spec"
            entry = facts.entries.get(mount.point)
            cgroup = mount.fstype in ("cgroup", "cgroup2")
            key = mount.point if cgroup or entry is None or is_bind(entry) else None
        elif mount.point in facts.masked or mount.point in facts.readonly:
            role = "masked"
            if mount.point in facts.masked and mount.root != "/":
                key = mount.point if runtime == "crun" else NULL
        elif mount.id in strangers:
            role, key = "foreign", mount.point
        else:
            role = "hook"
        row: dict[str, Any] = {"destination": mount.point, "role": role, "fstype": mount.fstype, "key": key}
        if is_dir is not None:
            row["kind"] = "dir" if is_dir(mount.point) else "file"
        rows.append(row)
    return rows
