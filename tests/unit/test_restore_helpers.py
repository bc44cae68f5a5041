"""Small decisions of a restore."""

import pytest
from grit_runtime import restore


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/c1"),
        ("/kubepods/pod1/c", "/kubepods/pod1/c"),
        ("k8s.io/c", "/k8s.io/c"),
        ("system.slice:cri:abc", "/system.slice/cri-abc.scope"),
        ("kubepods-burstable-pod1.slice:cri-containerd:abc",
         "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"),
        (":p:n", "/system.slice/p-n.scope"),
    ],
)  # fmt: skip
def test_cgroup_names_as_runc_makes_them(path: str, expected: str) -> None:
    assert restore._group({"linux": {"cgroupsPath": path}}, "c1") == expected


def test_a_fresh_bundle_lacks_what_the_image_needs() -> None:
    spec = {
        "mounts": [{"destination": "/etc/hosts"}],
        "linux": {"maskedPaths": ["/proc/keys"], "devices": [{"path": "/dev/x"}]},
    }
    assert not restore.lacks(spec, ["/etc/hosts", "/dev/null", "/proc/keys", "/dev/x"])
    assert restore.lacks(spec, ["/usr/lib/libcuda.so.1"])


def test_a_file_in_a_bind_is_looked_up_at_its_source() -> None:
    spec = {
        "mounts": [
            {"destination": "/data", "type": "bind", "source": "/host"},
            {"destination": "/data/deep/", "type": "none", "options": ["rbind"], "source": "/other"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        ]
    }
    assert restore._bind_of(spec, "/data/a") == "/host/a"
    assert restore._bind_of(spec, "/data/deep/a/b") == "/other/a/b"
    assert restore._bind_of(spec, "/database") is None
    assert restore._bind_of(spec, "/tmp/x") is None
