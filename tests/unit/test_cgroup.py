"""Control groups: finding the freezer's one."""

from pathlib import Path

from grit_runtime import cgroup


def test_both_versions_of_the_process_file() -> None:
    text = "12:cpu,cpuacct:/a\n6:freezer:/kube/pod:1\n1:name=systemd:/x\n0::/unified/y\n"
    assert cgroup.parse(text) == {
        "cpu": "/a", "cpuacct": "/a", "freezer": "/kube/pod:1", "name=systemd": "/x", "": "/unified/y",
    }  # fmt: skip


def test_mounted_hierarchies(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(
        "30 29 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
        "31 30 0:27 / /sys/fs/cgroup/freezer rw shared:5 - cgroup cgroup rw,freezer\n"
        "32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    where = cgroup.mounted(str(info))
    assert (where["freezer"], where[""]) == ("/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified")


def test_a_group_that_is_gone_is_neither_frozen_nor_an_error() -> None:
    for version in (1, 2):
        gone = cgroup.Group("/nonexistent", version)
        assert not cgroup.frozen(gone)
        assert cgroup.processes(gone) == []
        cgroup.thaw(gone)
        cgroup.remove(gone)
