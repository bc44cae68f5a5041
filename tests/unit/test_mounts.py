"""Mounts: parsing /proc, what CRIU must be told of mounts behind the spec, and the plan for a restore."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from grit_runtime import mounts

HOST = """\
20 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
21 20 0:20 / /proc rw shared:2 - proc proc rw
25 20 0:25 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
26 20 0:40 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
90 20 0:90 / /run/c/rootfs rw - overlay overlay rw,lowerdir=/l
"""
# a container: rootfs overlay, its own proc, tmpfs on /dev, binds of the spec, NVIDIA's hook over a file of /proc, a
# person's bind of a host folder, masks
INSIDE = r"""
200 150 0:90 / / rw,relatime - overlay overlay rw,lowerdir=/l
201 200 0:91 / /proc rw,nosuid - proc proc rw
202 200 0:92 / /dev rw,nosuid - tmpfs tmpfs rw
203 200 254:0 /var/lib/kubelet/hosts /etc/hosts rw - ext4 /dev/vda rw
204 200 254:0 /srv/my\040data\134x /data ro - ext4 /dev/vda rw
205 204 0:99 / /data/inner rw - fuse fuse rw
206 200 0:93 / /run/nvidia-ctk-hook1 rw - tmpfs tmpfs rw
207 201 0:93 /params /proc/driver/nvidia/params ro - tmpfs tmpfs rw
208 200 254:0 /etc /mnt rw master:1 - ext4 /dev/vda rw
209 201 0:92 /null /proc/keys rw - tmpfs tmpfs rw
210 201 0:94 / /proc/acpi ro - tmpfs tmpfs ro
211 201 0:91 /sys /proc/sys ro - proc proc rw
212 200 0:25 / /host-run rw - tmpfs tmpfs rw
213 200 254:0 /usr/lib/libcuda.so.570.1 /usr/lib/libcuda.so.570.1 ro - ext4 /dev/vda rw
214 200 0:90 /srv /srv2 rw - overlay overlay rw
215 201 0:6 /null /proc/kcore rw - devtmpfs udev rw
""".strip()
SPEC: dict[str, Any] = {
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/hosts", "options": ["rbind", "rw"]},
        {"destination": "/link/data", "type": "bind", "source": "/srv/my data", "options": ["rbind", "ro", "nodev"]},
        {"destination": "/usr/lib/libcuda.so.570.1", "type": "bind", "source": "/usr/lib/libcuda.so.570.1",
         "options": ["bind", "ro"]},
    ],
    "linux": {
        "maskedPaths": ["/proc/keys", "/proc/acpi", "/proc/kcore", "/proc/acpi/inner"],
        "readonlyPaths": ["/proc/sys"],
    },
}  # fmt: skip


def resolve(path: str) -> str:
    """/link is a symlink to / in the container's root."""
    return path.removeprefix("/link")


class Image(NamedTuple):
    mountpoint: str
    key: str = ""
    kind: str = "overlay"
    root: str = "/"
    flags: int = 0
    super_flags: int = 0


def test_parse_escapes_and_optional_fields() -> None:
    table = mounts.parse(INSIDE)
    data = next(mount for mount in table if mount.point == "/data")
    assert (data.id, data.parent, data.dev, data.options, data.source) == (204, 200, "254:0", ("ro",), "/dev/vda")
    assert data.root == "/srv/my data\\x"
    assert next(mount for mount in table if mount.point == "/mnt").optional == ("master:1",)
    assert mounts.parse("1 0 0:1 / / rw shared:1 master:2 - tmpfs a rw")[0].optional == ("shared:1", "master:2")
    with pytest.raises(ValueError):
        mounts.parse("1 0 0:1 / / rw tmpfs")


def test_inside_never_leaves_the_root() -> None:
    links = {"/r/var/run": "/run", "/r/up": "../../../etc", "/r/loop": "loop"}

    def readlink(path: str) -> str:
        if path not in links:
            raise OSError
        return links[path]

    assert mounts.inside("/r", "/var/run/secrets/../x", readlink) == "/run/x"
    assert mounts.inside("/r", "/up/passwd", readlink) == "/etc/passwd"
    with pytest.raises(OSError):
        mounts.inside("/r", "/loop/x", readlink)


def test_externals_are_what_criu_has_no_root_for() -> None:
    found = mounts.dump_externals(mounts.parse(INSIDE), SPEC, mounts.parse(HOST), resolve)
    # not: the hook's tmpfs and its file over /proc, masks, read-only paths, a bind of the container's own rootfs
    assert found == [(path, path) for path in ("/data/inner", "/mnt", "/host-run")]


def test_root_on_a_host_folder_owns_only_what_is_in_it() -> None:
    inside = mounts.parse(
        "1 0 254:0 /srv/rootfs / rw - ext4 /dev/vda rw\n2 1 254:0 /srv/rootfs/a /b rw - ext4 /dev/vda rw\n"
        "3 1 254:0 /etc /c rw - ext4 /dev/vda rw"
    )
    assert mounts.dump_externals(inside, {}, mounts.parse(HOST)) == [("/c", "/c")]


def test_describe_roles_and_keys() -> None:
    rows = mounts.describe(
        mounts.parse(INSIDE), SPEC, mounts.parse(HOST), resolve, is_dir=lambda path: path != "/etc/hosts"
    )
    told = {row["destination"]: (row["role"], row["key"]) for row in rows}
    assert told["/etc/hosts"] == ("spec", "/etc/hosts") and told["/data"] == ("spec", "/data")
    assert told["/proc"] == ("spec", None)
    assert told["/usr/lib/libcuda.so.570.1"] == ("injected", "/usr/lib/libcuda.so.570.1")
    assert told["/run/nvidia-ctk-hook1"] == ("hook", None) == told["/proc/driver/nvidia/params"]
    assert told["/mnt"] == ("foreign", "/mnt")
    assert told["/proc/keys"] == ("masked", "/dev/null") and told["/proc/sys"] == ("masked", None)
    assert [row["kind"] for row in rows if row["destination"] == "/etc/hosts"] == ["file"]
    crun = mounts.describe(mounts.parse(INSIDE), SPEC, mounts.parse(HOST), resolve, runtime="crun")
    assert next(row["key"] for row in crun if row["destination"] == "/proc/keys") == "/proc/keys"


GOOD = [
    Image("/"),
    Image("/proc", kind="proc"),
    Image("/dev", kind="tmpfs"),
    Image("/etc/hosts", "/etc/hosts"),
    Image("/data", "/data", flags=5),
    Image("/usr/lib/libcuda.so.570.1", "/usr/lib/libcuda.so.570.1", flags=1),
    Image("/proc/keys", "/dev/null"),
    Image("/proc/kcore", "/dev/null"),
    Image("/proc/acpi", kind="tmpfs", flags=1),
    Image("/proc/sys", kind="proc", root="/sys", flags=1),
]


def plan(
    image: list[Image], spec: dict[str, Any] = SPEC, told: list[dict[str, Any]] | None = None, **more: Any
) -> mounts.RestorePlan:
    given = {"host_mounts": mounts.parse(HOST), "resolve": resolve, "exists": lambda path: True, **more}
    return mounts.restore_plan(image, spec, told or [], given.pop("optional", []), **given)


def reasons(made: mounts.RestorePlan) -> list[str]:
    return [refusal.reason for refusal in made.refusals]


def test_plan_for_the_same_spec_changes_nothing() -> None:
    assert plan(GOOD) == mounts.RestorePlan([], [("/dev/null", "/dev/null")], [], [], [], [], [])


def test_plan_names_what_is_missing_and_whose_it_is() -> None:
    made = plan([*GOOD, Image("/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"), Image("/cache", "/cache")])
    assert reasons(made) == ["mount-missing", "mount-missing"]
    assert "/usr/bin/nvidia-smi" in made.refusals[0].message and "one of NVIDIA's" in made.refusals[0].message
    assert "none of NVIDIA's" in made.refusals[1].message
    told = [{"destination": "/cache", "role": "spec", "kind": "dir"}]
    made = plan([*GOOD, Image("/cache", "/cache")], told=told, optional=["/ca*"])
    assert made.refusals == [] and made.placeholders == [mounts.Placeholder("/cache", "dir")]


def test_plan_takes_sources_from_the_live_spec_alone() -> None:
    """A mount inside a recursive bind is found at that bind's source here; the manifest's word for one is nothing."""
    liar = [{"destination": "/data/inner", "role": "foreign", "key": "/data/inner", "source": "/etc/shadow"}]
    made = plan([*GOOD, Image("/data/inner", "/data/inner")], told=liar)
    source, options = "/srv/my data/inner", ["bind", "ro", "nodev"]
    assert made.add == [{"destination": "/data/inner", "type": "bind", "source": source, "options": options}]
    assert reasons(plan([*GOOD, Image("/mnt", "/mnt")], told=[{**liar[0], "destination": "/mnt"}])) == ["mount-missing"]


def test_plan_maps_another_driver_only_where_allowed() -> None:
    old = "/usr/lib/libcuda.so.560.9"
    image = [m for m in GOOD if "libcuda" not in m.mountpoint] + [Image(old, old, flags=1)]
    assert reasons(plan(image)) == ["mount-version-differs"]
    made = plan(image, allow=["mount-version-differs"])
    assert made.refusals == [] and made.add == [{**SPEC["mounts"][4], "destination": old}]
    assert made.unused == ["/usr/lib/libcuda.so.570.1"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ([m for m in GOOD if m.mountpoint != "/proc/keys"], "masks-differ"),
        ([m._replace(kind="proc") if m.mountpoint == "/proc/acpi" else m for m in GOOD], "masks-differ"),
        ([m._replace(flags=0) if m.mountpoint == "/proc/sys" else m for m in GOOD], "masks-differ"),
        ([m._replace(flags=4) if m.mountpoint == "/data" else m for m in GOOD], "mount-flags-differ"),
        ([*GOOD, Image("/p", kind="proc")], "mount-unexpected"),
        ([*GOOD, Image("/disk", kind="btrfs")], "mount-unexpected"),
        ([*GOOD, Image("/up", kind="overlay")], "mount-unexpected"),
        ([m._replace(key="") if m.mountpoint == "/data" else m for m in GOOD], "mount-unexpected"),
        ([m._replace(key="", kind="tmpfs") if m.mountpoint == "/etc/hosts" else m for m in GOOD], "mount-unexpected"),
        ([m._replace(kind="sysfs") if m.mountpoint == "/proc" else m for m in GOOD], "mount-unexpected"),
    ],
)
def test_plan_refuses_an_image_that_reaches_further(image: list[Image], reason: str) -> None:
    assert reasons(plan(image)) == [reason]
    allowed = plan(image, allow=[reason])
    assert reasons(allowed) == [] and [refusal.reason for refusal in allowed.passed] == [reason]


def test_plan_skips_masks_of_paths_that_are_not_here() -> None:
    image = [m for m in GOOD if m.mountpoint != "/proc/acpi"]
    assert reasons(plan(image, exists=lambda path: "acpi" not in path)) == []


def test_plan_makes_the_mountpoints_of_hooks() -> None:
    params = Image("/proc/driver/nvidia/params", kind="tmpfs", root="/params")
    made = plan([*GOOD, Image("/run/nvidia-ctk-hook1", kind="tmpfs"), params])
    assert made.scratch == [("/run/nvidia-ctk-hook1", "dir"), ("/proc/driver/nvidia/params", "file")]


def test_plan_gives_cgroups_of_another_layout_a_placeholder() -> None:
    entry = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    spec = {**SPEC, "mounts": [*SPEC["mounts"], entry]}
    v2 = [*GOOD, Image("/sys/fs/cgroup", "/sys/fs/cgroup")]
    v1 = [*GOOD, Image("/sys/fs/cgroup", kind="tmpfs"), Image("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu")]
    old = mounts.parse("1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu")
    assert plan(v2, spec).placeholders == [] == plan(v1, spec, host_mounts=old).placeholders
    assert plan(v1, spec).placeholders == [mounts.Placeholder("/sys/fs/cgroup/cpu", "dir")]
    assert plan(v2, spec, host_mounts=old).placeholders == [mounts.Placeholder("/sys/fs/cgroup", "dir")]
