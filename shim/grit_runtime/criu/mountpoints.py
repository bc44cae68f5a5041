"""The mounts of an image. Source: CRIU's images/mnt.proto and criu/mount.c; for keys runc's criu_linux.go."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from grit_runtime.criu import imagefile
from grit_runtime.criu.imagefile import Path, entries

# enum fstype; the type of a mount that CRIU doesn't know itself is 16 (auto), or 0, with its name in fsname.
TYPES = {
    0: "unsupported", 1: "proc", 2: "sysfs", 3: "devtmpfs", 4: "binfmt_misc", 5: "tmpfs", 6: "devpts", 7: "simfs",
    8: "pstore", 9: "securityfs", 10: "fusectl", 11: "debugfs", 12: "cgroup", 13: "aufs", 14: "mqueue", 15: "fuse",
    16: "auto", 17: "overlay", 18: "autofs", 19: "tracefs", 23: "cgroup2",
}  # fmt: skip
# Types that a restore makes anew and that hold nothing of the node's beyond what the spec gives a container too.
HARMLESS = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2")
MS_RDONLY = 1


class Mount(NamedTuple):
    """One mount. `root` is the folder of its file system that is mounted; `key` is set when the mount is external.

    `device` is st_dev as the kernel has it (major << 20 | minor); `flags` are MS_* of the mount, `super_flags` of the
    file system. `kind` is the type's name.
    """

    id: int
    parent: int
    kind: str
    device: int
    root: str
    mountpoint: str
    source: str
    options: str
    flags: int
    super_flags: int
    shared: int
    master: int
    external: bool
    key: str
    namespace: int


def mounts(folder: Path) -> list[Mount]:
    """All mounts of all mount namespaces. The key of an external one that names no key is its mountpoint."""
    result = []
    for name in imagefile.names(folder):
        if imagefile.kind(name) != "mountpoints":
            continue
        namespace = int(number) if (number := name[len("mountpoints-") : -len(".img")]).isdecimal() else 0
        for entry in entries(os.path.join(folder, name)):
            kind = TYPES.get(entry.integer(1), "unknown")
            mountpoint, key = entry.text(7), entry.text(18)
            external = bool(entry.integer(13)) or bool(key)
            result.append(
                Mount(
                    id=entry.integer(2),
                    parent=entry.integer(4),
                    kind=entry.text(14) or "unknown" if kind in ("auto", "unsupported", "unknown") else kind,
                    device=entry.integer(3),
                    root=entry.text(6),
                    mountpoint=mountpoint,
                    source=entry.text(8),
                    options=entry.text(9),
                    flags=entry.integer(5),
                    super_flags=entry.integer(17),
                    shared=entry.integer(10),
                    master=entry.integer(11),
                    external=external,
                    key=key or (mountpoint if external else ""),
                    namespace=namespace,
                )
            )
    return result


def root(folder: Path) -> Mount | None:
    """The mount of the container's rootfs: mounted on `/`, below no mount that the image knows."""
    found = mounts(folder)
    known = {mount.id for mount in found}
    return next((mount for mount in found if mount.mountpoint == "/" and mount.parent not in known), None)


def external_keys(folder: Path) -> dict[str, list[str]]:
    """key -> mountpoints: everything that the restore must give CRIU a source for. Masks share the key /dev/null."""
    result: dict[str, list[str]] = {}
    for mount in mounts(folder):
        if mount.external:
            result.setdefault(mount.key, []).append(mount.mountpoint)
    return result


def mask(mount: Mount) -> bool:
    """Whether a mount hides a path: /dev/null over a file, a tmpfs of its own over a folder, below /proc or /sys."""
    if not mount.mountpoint.startswith(("/proc/", "/sys/")):
        return False
    # runc's key for a file is /dev/null; crun's is the path itself. The source is this node's in both cases.
    if mount.external:
        return mount.key == "/dev/null" or mount.root.endswith("/null")
    return mount.kind == "tmpfs" and mount.root == "/"


def masks(folder: Path) -> list[str]:
    """The masked paths of an image, sorted. A restore masks these and no others, whatever the live spec says.

    A path counts only if everything that is mounted on it is a mask: another mount on top would show it again.
    """
    return _everywhere(mounts(folder), mask)


def readonly(folder: Path) -> list[str]:
    """The paths below /proc and /sys that the image mounts over themselves, read-only, sorted."""
    return _everywhere(mounts(folder), _readonly)


def _readonly(mount: Mount) -> bool:
    return mount.kind in ("proc", "sysfs") and mount.root != "/" and bool(mount.flags & MS_RDONLY)


def _everywhere(found: list[Mount], holds: Callable[[Mount], bool]) -> list[str]:
    """The mountpoints at which it holds for every mount."""
    return sorted({m.mountpoint for m in found if holds(m)} - {m.mountpoint for m in found if not holds(m)})


def unexpected(folder: Path, spec: Mapping[str, str]) -> list[Mount]:
    """Mounts that a restore would make by itself and that the live spec (destination -> type) doesn't give.

    A device's file system or a devtmpfs reaches beyond the container; a second proc or sysfs, or another view of
    one, reaches past the masks and the read-only paths.
    """
    own = [mount for mount in mounts(folder) if not mount.external]
    seen: set[str] = set()
    result = []
    for mount in own:
        wanted = spec.get(mount.mountpoint, "").replace("cgroup2", "cgroup")
        if mount.kind in ("proc", "sysfs", "cgroup", "cgroup2"):
            # A read-only or masking bind of a part over itself is what runtimes make of readonlyPaths.
            itself = any(
                mount.mountpoint == other.mountpoint.rstrip("/") + mount.root
                for other in own
                if other.kind == mount.kind and other.root == "/" and other.mountpoint in spec
            )
            if mount.root == "/" or mount.kind.startswith("cgroup"):
                fine = wanted == mount.kind.replace("cgroup2", "cgroup") and mount.mountpoint not in seen
                fine = fine or _below_cgroup(mount, spec)
            else:
                fine = itself and bool(mount.flags & MS_RDONLY)
            seen.add(mount.mountpoint)
        else:
            fine = mount.kind in HARMLESS or mount.mountpoint == "/"
        if not fine:
            result.append(mount)
    return result


def _below_cgroup(mount: Mount, spec: Mapping[str, str]) -> bool:
    """Version 1 mounts each controller below the spec's one mount of type cgroup."""
    parent = mount.mountpoint.rpartition("/")[0]
    return mount.kind.startswith("cgroup") and spec.get(parent, "").startswith("cgroup")
