"""What the testbed decides before it does anything."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.testbed import groups
from tests.testbed.build import choose_mirror

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 60 0:29 /a /var/inner/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
51 60 0:29 / /var/again/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""


def test_hierarchies_each_once_and_whole() -> None:
    found = groups.hierarchies(HYBRID)
    assert [(str(mount), options) for mount, options in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
        ("/sys/fs/cgroup/systemd", "none,name=systemd"),
        ("/sys/fs/cgroup/unified", ""),
    ]


def test_mirror_is_the_machines_own() -> None:
    third, security = "https://download.example/linux/debian-other", "http://a.example/debian-security/"
    assert choose_mirror([third, security, "http://b.example/debian/"]) == "http://b.example/debian"
    assert choose_mirror(["http://archive.example/ubuntu/"]) == "http://deb.debian.org/debian"


STANDIN = runpy.run_path(str(Path(__file__).parents[1] / "testbed/nvidia_standin.py"))


@pytest.mark.parametrize(
    ("words", "bundle"),
    [
        ("--root /r create --bundle /b one", "/b"),
        ("--root /r create -b=/b one", "/b"),
        ("create one", "."),
        ("--log create.log state one", None),
        ("run --bundle create one", None),
    ],
)
def test_standin_edits_for_create_alone(words: str, bundle: str | None) -> None:
    assert STANDIN["bundle_to_create"](words.split()) == bundle


def test_standin_reads_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[other]\nmode = "cdi"\nruntimes = ["no"]\n\n[nvidia-container-runtime]\n#mode = "csv"\nmode = "legacy"\n'
        'runtimes = [\n    "/usr/libexec/noop",\n    "runc",\n]\n\n[nvidia-container-runtime.modes.csv]\nmode = "x"\n'
    )
    assert STANDIN["settings"](str(config)) == (["/usr/libexec/noop", "runc"], "legacy")
    assert STANDIN["settings"](str(tmp_path / "none")) == (["runc", "crun"], "auto")
