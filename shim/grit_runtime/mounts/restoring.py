"""The plan for the mounts of a restore: pure. A path that comes from an image or a manifest is only ever a key to look
up in the live spec, or a place inside the container's own rootfs: never a source."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from grit_runtime.checks import Refusal, refuse
from grit_runtime.mounts.described import NULL, Known, Resolve, Spec, known, looks_nvidia, same
from grit_runtime.mounts.mountinfo import Mount, below, read
from grit_runtime.spec import is_bind

# What an image may mount at a destination that the live spec doesn't name: nothing of a host's is in these.
HARMLESS = frozenset({"tmpfs", "devpts", "mqueue"})
FLAGS = {"ro": 1, "rro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}  # linux/mount.h MS_*
# What masks a folder, and stands for one that isn't there: nobody can write into it, whatever flags CRIU gives the
# mount. The kernel keeps it without content (fs/proc/proc_tty.c).
EMPTY = "/proc/tty/ldisc"


class ImageMount(Protocol):
    """What is read of a mount of an image: `criu.mountpoints.Mount`. `key` is "" for one that isn't external."""

    @property
    def mountpoint(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def root(self) -> str: ...
    @property
    def flags(self) -> int: ...
    @property
    def super_flags(self) -> int: ...


class Placeholder(NamedTuple):
    """A mount that the image needs and this node need not have: bind an empty `kind` ("dir" or "file") there."""

    key: str
    kind: str


class RestorePlan(NamedTuple):
    """What a restore of an image under a live spec needs.

    add: entries to append to the spec's `mounts`; the runtime makes mountpoint and mapping of each.
    externals: pairs (key, this node's source) for CRIU's configuration, for keys that no entry can give.
    placeholders: optional mounts that are missing here, and cgroup hierarchies of another layout.
    scratch: mountpoints (path, "dir" or "file") to make in the new rootfs: of mounts behind the spec.
    unused: binds of the live spec that the image lacks; they will silently not be mounted.
    refusals: why it can't be restored, none if it can.
    passed: what would be a refusal if its reason weren't allowed.
    """

    add: list[dict[str, Any]]
    externals: list[tuple[str, str]]
    placeholders: list[Placeholder]
    scratch: list[tuple[str, str]]
    unused: list[str]
    refusals: list[Refusal]
    passed: list[Refusal]


def restore_plan(
    image_mounts: Sequence[ImageMount],
    live_spec: Spec,
    manifest_mounts: Sequence[dict[str, Any]],
    optional_globs: Sequence[str],
    *,
    resolve: Resolve = same,
    exists: Callable[[str], bool] = os.path.lexists,
    allow: Collection[str] = (),
    host_mounts: Iterable[Mount] | None = None,
) -> RestorePlan:
    """Match the image's mounts with the live, injected spec, whose sources are real paths already.

    `resolve`: `inside` for the new rootfs. `exists`: whether a path of /proc or /sys is there on this node. `allow`:
    reasons that the caller may pass. `host_mounts`: this node's own, which tell the layout of its
    cgroups; None reads ours.
    """
    live = known(live_spec, resolve)
    told = {str(row.get("destination")): row for row in manifest_mounts}
    plan = RestorePlan([], [], [], [], [], [], [])
    cgroups = cgroup_keys(live, read("self") if host_mounts is None else host_mounts)
    for mount in image_mounts:
        if mount.mountpoint == "/":
            continue
        if mount.key in cgroups:
            pass
        elif mount.key:
            _external(mount, live, told, optional_globs, allow, plan)
        else:
            _internal(mount, live, told, allow, plan)
        _flags(mount, live, allow, plan)
    points = {mount.mountpoint: mount for mount in image_mounts}
    _masks(points, live, exists, allow, plan)
    for point, entry in live.entries.items():
        if is_bind(entry) and point not in points:
            plan.unused.append(point)
    return plan


def cgroup_keys(live: Known, host: Iterable[Mount]) -> set[str]:
    """The keys that runc itself maps for the spec's cgroup mounts on a node with these mounts: version 2 has one at the
    destination, version 1 one below it for each hierarchy (runc's getCgroupMounts)."""
    host = list(host)
    if any(mount.fstype == "cgroup2" and mount.point == "/sys/fs/cgroup" for mount in host):
        return set(live.cgroups)
    names = {posixpath.basename(mount.point) for mount in host if mount.fstype == "cgroup"}
    return {f"{top}/{name}" for top in live.cgroups for name in names}


def _refuse(plan: RestorePlan, allow: Collection[str], reason: str, **facts: object) -> None:
    (plan.passed if reason in allow else plan.refusals).append(refuse(reason, **facts))


def _external(
    mount: ImageMount,
    live: Known,
    told: dict[str, dict[str, Any]],
    optional: Sequence[str],
    allow: Collection[str],
    plan: RestorePlan,
) -> None:
    key, point = mount.key, mount.mountpoint
    if key == NULL and point != NULL or point in live.masked:
        # A masked file: runc calls all of them /dev/null, crun each by its own name, and a folder by that of an empty
        # one that it keeps.
        pair = (key, NULL if key in (NULL, point) else EMPTY)
        if pair not in plan.externals:
            plan.externals.append(pair)
        return
    entry = live.entries.get(key)
    if (entry is not None and is_bind(entry)) or key in live.devices:
        return
    if any(below(key, top) for top in live.cgroups):
        plan.placeholders.append(Placeholder(key, "dir"))
        return
    twin = _twin(key, live)
    if twin is not None:
        plan.add.append({**live.entries[twin], "destination": key})
        _refuse(plan, allow, "mount-version-differs", destination=key, here=twin)
        return
    inner = _within_rbind(key, live)
    if inner is not None:
        plan.add.append({"destination": key, "type": "bind", "source": inner[0], "options": ["bind", *inner[1]]})
    elif _matches(key, optional):
        plan.placeholders.append(Placeholder(key, str(told.get(point, {}).get("kind") or "file")))
    else:
        whose = "It looks like one of NVIDIA's" if looks_nvidia(key) else "It is none of NVIDIA's"
        _refuse(plan, (), "mount-missing", destination=key, whose=whose)


def _twin(key: str, live: Known) -> str | None:
    """The live bind that is the same library in another version: same folder and name up to `.so.`."""
    stem, dot, _ = key.partition(".so.")
    if not dot or not looks_nvidia(key):
        return None
    for point, entry in live.entries.items():
        if is_bind(entry) and point.partition(".so.")[:2] == (stem, dot):
            return point
    return None


def _within_rbind(key: str, live: Known) -> tuple[str, list[str]] | None:
    """The source on this node of a mount inside a recursive bind of the live spec, and the flags of that bind."""
    best = ""
    for point, entry in live.entries.items():
        if "rbind" in (entry.get("options") or ()) and below(key, point) and len(point) > len(best):
            best = point
    if not best:
        return None
    entry = live.entries[best]
    flags = [option for option in entry.get("options") or () if option in FLAGS]
    return str(entry["source"]).rstrip("/") + key[len(best) :], flags


def _matches(path: str, globs: Sequence[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(path, glob) for glob in globs)


def _internal(
    mount: ImageMount, live: Known, told: dict[str, dict[str, Any]], allow: Collection[str], plan: RestorePlan
) -> None:
    """A mount that CRIU makes by itself: the live spec must want it so, or it must carry nothing of a host."""
    point, kind = mount.mountpoint, mount.kind
    entry = live.entries.get(point)
    if entry is not None:
        if is_bind(entry) or (entry.get("type") not in (kind, "cgroup", "cgroup2") and kind != "tmpfs"):
            _refuse(plan, allow, "mount-unexpected", destination=point, fstype=kind)
        return
    if point in live.masked or point in live.readonly:
        return
    if any(below(point, top) for top in live.cgroups) and kind in ("cgroup", "cgroup2", "tmpfs"):
        return
    if kind not in HARMLESS and not (kind == "overlay" and mount.root != "/"):
        _refuse(plan, allow, "mount-unexpected", destination=point, fstype=kind)
        return
    whole = mount.root == "/"
    plan.scratch.append((point, "dir" if whole else str(told.get(point, {}).get("kind") or "file")))


def _flags(mount: ImageMount, live: Known, allow: Collection[str], plan: RestorePlan) -> None:
    """CRIU takes a mount's flags from the image: what the live spec makes read-only must be so there too."""
    top = next((top for top in live.cgroups if below(mount.mountpoint, top)), mount.mountpoint)
    entry = live.entries.get(top)
    if entry is None or (top in live.cgroups and mount.kind == "tmpfs"):
        return  # of the tmpfs over the hierarchies of version 1 runc makes none read-only, only what is mounted in it
    wanted = {option for option in entry.get("options") or () if option in FLAGS}
    lacking = sorted(option for option in wanted if not (mount.flags | mount.super_flags) & FLAGS[option])
    if lacking:
        _refuse(plan, allow, "mount-flags-differ", destination=mount.mountpoint, flags=",".join(lacking))


def _masks(
    points: dict[str, ImageMount], live: Known, exists: Callable[[str], bool], allow: Collection[str], plan: RestorePlan
) -> None:
    """Masks come from the image: each that the live spec asks for must be there, of a kind that masks."""
    for path in sorted(live.masked | live.readonly):
        covered = any(top != path and below(path, top) and top in points for top in live.masked)
        if covered or not exists(path):
            continue
        mount = points.get(path)
        if path in live.masked:
            good = mount is not None and (bool(mount.key) or mount.kind == "tmpfs")
        else:
            good = mount is not None and bool((mount.flags | mount.super_flags) & FLAGS["ro"])
        if not good:
            _refuse(plan, allow, "masks-differ", path=path)
