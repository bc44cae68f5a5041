"""doctor's judgement of nodes that we don't have, and its screen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from grit_runtime.chain import Flavour
from grit_runtime.checks import refuse
from grit_runtime.criu.features import Criu
from grit_runtime.ctl import doctor, facts, proof
from grit_runtime.ctl.containerd import Edit
from grit_runtime.ctl.facts import Facts, Folder, Gpu, Toolkit
from grit_runtime.ctl.main import main
from grit_runtime.ctl.rows import Row, rows
from grit_runtime.ctl.targets import Target
from grit_runtime.settings import Checkpoint, Settings

NVIDIA = "/usr/bin/nvidia-container-runtime"
TOOLKIT = "/etc/nvidia-container-runtime/config.toml"
GOOD = Facts(
    root=True,
    settings=Settings(),
    next=NVIDIA,
    low=Flavour("runc", (1, 3, 6)),
    nvidia=NVIDIA,
    toolkit=Toolkit(TOOLKIT, "auto", ["runc", "crun"]),
    driver="580.159.04",
    gpus=[Gpu("NVIDIA H100 80GB HBM3", 80 << 30, True, False)],
    cuda_binary=False,
    criu=Criu("/usr/sbin/criu", (4, 2, 1), "", True, False),
    kernel="6.18.5-cloud",
    huge_pages="madvise",
    targets=[Target("containerd", "/etc/containerd/config.toml", None)],
    folders=[Folder("/var/lib/grit", 500 << 30, True)],
    missing=[],
    pending=[],
    foreign=[],
    libcriu=False,
    capabilities=(1 << 41) - 1,
)


def test_a_good_node_has_nothing_to_say_against() -> None:
    assert {row.level for row in rows(GOOD)} == {"ok"}
    assert not any(row.reason or row.remedy for row in rows(GOOD))
    assert {row.level for row in rows(GOOD._replace(driver="unknown"))} == {"ok", "info"}
    plain = GOOD._replace(next="/usr/bin/runc", nvidia=None, toolkit=None, driver="", gpus=[])
    assert {row.level for row in rows(plain)} == {"ok", "info"}, "a node without GPUs is ready too"


@pytest.mark.parametrize(
    ("change", "reason", "level"),
    [
        ({"missing": ["/usr/bin/grit-runtime"]}, "part-missing", "bad"),
        ({"settings": refuse("config-missing", path="/x")}, "config-missing", "bad"),
        ({"next": "/usr/bin/runc"}, "chain-plain-runc", "bad"),
        ({"next": refuse("next-runtime-missing", path="/x")}, "next-runtime-missing", "bad"),
        ({"toolkit": Toolkit(TOOLKIT, "auto", ["/usr/bin/grit-runtime"])}, "chain-loop", "bad"),
        ({"toolkit": Toolkit(TOOLKIT, "legacy", ["runc"])}, "toolkit-legacy", "bad"),
        ({"nvidia": None}, "nvidia-toolkit-missing", "bad"),
        ({"criu": Criu("", (), "", False, False)}, "criu-missing", "bad"),
        ({"criu": Criu("/c", (3, 17, 1), "", True, True)}, "criu-too-old", "bad"),
        ({"criu": Criu("/c", (4, 1, 1), "", True, True)}, "criu-kernel", "bad"),
        ({"criu": Criu("/c", (4, 2), "Error: no", True, True)}, "criu-check-failed", "bad"),
        ({"criu": Criu("/c", (4, 2), "", False, False)}, "network-lock-missing", "warn"),
        ({"settings": Settings(checkpoint=Checkpoint(network_lock="nftables"))}, "network-lock-missing", "warn"),
        ({"kernel": "5.4.0"}, "kernel-old", "bad"),
        ({"kernel": "6.1.0"}, "kernel-old", "warn"),
        ({"driver": "535.1"}, "driver-too-old", "bad"),
        ({"driver": "560.35", "cuda_binary": False}, "driver-too-old", "bad"),
        ({"gpus": None}, "gpu-silent", "warn"),
        ({"gpus": [Gpu("x", 1, False, False)]}, "gpu-persistence", "warn"),
        ({"gpus": [Gpu("x", 1, True, True)]}, "gpu-mig", "bad"),
        ({"huge_pages": "never"}, "huge-pages-off", "warn"),
        ({"folders": [Folder("/f", 500 << 30, False)]}, "root-writable", "bad"),
        ({"folders": [Folder("/f", 1 << 20, True)]}, "space-low", "bad"),
        ({"folders": [Folder("/f", 70 << 30, True)]}, "space-low", "warn"),
        ({"pending": ["/run/grit-runtime/op/x"]}, "recovery-needed", "bad"),
        ({"foreign": [("containerd", "xx_XX.UTF-8")]}, "locale-missing", "warn"),
        ({"targets": [Target("containerd", "/e", Edit("/e", "", "x", []))]}, "handler-missing", "warn"),
        ({"targets": [Target("containerd", "/e", None, refuse("handler-name", name="x"))]}, "handler-name", "warn"),
        ({"low": Flavour("crun", (1, 21))}, "libcriu-missing", "bad"),
        ({"capabilities": (1 << 24) - 1}, "rights-missing", "warn"),
        ({"root": False}, "not-root", "unknown"),
    ],
)
def test_each_fault_is_named(change: dict[str, Any], reason: str, level: str) -> None:
    wrong = [row for row in rows(GOOD._replace(**change)) if row.level not in ("ok", "info")]
    assert [(row.reason, row.level) for row in wrong] == [(reason, level)]
    assert wrong[0].remedy


def test_the_screen_and_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    node = GOOD._replace(next="/usr/bin/runc", kernel="6.1.0")
    monkeypatch.setattr(doctor, "gather", lambda: node)
    shown = CliRunner().invoke(main, ["doctor"])
    assert shown.exit_code == 1 and "\x1b" not in shown.output
    assert all(len(line) <= 80 for line in shown.output.splitlines())
    assert "chain           bad   chain-plain-runc: this node has GPUs" in shown.output
    told = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    assert (told["kind"], told["version"], told["ready"]) == ("doctor", 1, False)
    assert set(told["rows"][0]) == {"check", "level", "text", "reason", "remedy"}
    assert doctor.verdict([Row("a", "warn", "")]) == 0
    assert doctor.verdict([Row("a", "unknown", "")]) == 2


def test_facts_are_read_as_their_sources_write_them() -> None:
    entries = ["LANG=xx_XX.UTF-8", "LC_ALL=", "HOME=/", "PERL_BADLANG=0", "LD_PRELOAD=/x", ""]
    assert facts.locale_of(entries) == {"LANG": "xx_XX.UTF-8", "LC_ALL": "", "PERL_BADLANG": "0"}
    assert proof.complains(["/usr/bin/perl", "-e", "1"], {"LANG": "xx_XX.UTF-8"})
    assert not proof.complains(["/usr/bin/perl", "-e", "1"], {"LANG": "xx_XX.UTF-8", "PERL_BADLANG": "0"})
    open_module = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    assert facts.driver_version(open_module) == "580.95.05" and facts.driver_version(closed) == "535.183.01"
    assert facts.driver_version("GCC version: 12.2.0 \n") == ""
    assert facts.capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n") == 0x1FFFEFFFFFF
    assert facts.chosen("always [madvise] never\n") == "madvise"
    csv = "NVIDIA H100 80GB HBM3, 81559, Enabled, Disabled\nTesla T4, 15360, Disabled, [N/A]\nbroken\n"
    assert facts.gpus(csv) == [
        Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, True, False),
        Gpu("Tesla T4", 15360 << 20, False, False),
    ]
    text = '[nvidia-container-runtime]\nmode = "legacy"\nruntimes = ["runc"]\n[nvidia-container-runtime.modes.cdi]\n'
    assert facts.toolkit("/x", text) == Toolkit("/x", "legacy", ["runc"])
    assert facts.toolkit("/x", "") == Toolkit("/x", "auto", [])
    assert facts.toolkit("/x", "nvidia-container-runtime = 5") is None and facts.toolkit("/x", None) is None
