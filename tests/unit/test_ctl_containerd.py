"""Our handler in containerd's configuration: real defaults of three versions, and hand-made odd and broken ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.ctl import toml
from grit_runtime.ctl.containerd import Edit, File, Handler, effective, plan, undone

DATA = Path(__file__).parent / "data" / "containerd"
MAIN = "/etc/containerd/config.toml"
V2 = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.'
V3 = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes."


@pytest.fixture(autouse=True, params=["tomllib", "tomlkit"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything twice: Python 3.10 has no tomllib, and reads with tomlkit what it edits with it."""
    if request.param == "tomlkit":
        modules: Any = sys.modules
        monkeypatch.setitem(modules, "tomllib", None)


def edit(text: str, daemon: tuple[int, ...] | None = (1, 7, 24), *more: File) -> Edit:
    made = plan([File(MAIN, text), *more], MAIN, daemon, Handler())
    assert made is not None
    return made


def ours(text: str, layout: int, daemon: tuple[int, ...] | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = effective([File(MAIN, text)], layout, daemon)["runtimes"]["grit"]
    return entry


@pytest.mark.parametrize(
    ("name", "daemon", "layout"),
    [
        ("containerd-1.6.20-default", (1, 6, 20), 2),
        ("containerd-1.7.24-default", (1, 7, 24), 2),
        ("containerd-2.1.9-default", (2, 1, 9), 3),
        ("debian-packaged", (1, 7, 24), 2),
        ("debian-packaged", (2, 1, 9), 2),
    ],
)
def test_real_configurations(name: str, daemon: tuple[int, ...], layout: int) -> None:
    before = (DATA / f"{name}.toml").read_text()
    made = edit(before, daemon)
    assert made.path == MAIN and made.after.startswith(before), "nothing that was there moves"
    entry = ours(made.after, layout)
    assert entry["runtime_type"] == "io.containerd.runc.v2"
    assert entry["pod_annotations"] == ["grit.dev/*"]
    assert entry["container_annotations"] == ["grit.dev/*", "io.kubernetes.container.restartCount"]
    assert entry["options"]["BinaryName"] == "/usr/bin/grit-runtime"
    assert plan([File(MAIN, made.after)], MAIN, daemon, Handler()) is None, "twice changes nothing"
    assert undone(File(MAIN, made.after), made.undo) == before
    somebody = "# somebody's line\n" + made.after + "\n[ttrpc]\n  uid = 7\n" * ("[ttrpc]" not in before)
    assert "grit" not in undone(File(MAIN, somebody), made.undo).replace(MAIN, "")


def test_containerd_1_keeps_its_default_runtime() -> None:
    for daemon, kept in (((1, 7, 24), True), ((1, 6, 20), True), (None, True), ((2, 1, 9), False)):
        runtimes = effective([File(MAIN, edit("version = 2\n", daemon).after)], 2)["runtimes"]
        assert ("runc" in runtimes) is kept, daemon
    there = edit(V2 + 'runc]\nruntime_type = "io.containerd.runc.v2"\n')
    assert there.after.count("runtimes.runc]") == 1
    with pytest.raises(Refusal, match="default runtime nvidia is not in it"):
        edit('version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "nvidia"\n')


def test_what_the_default_runtime_has_is_taken_over() -> None:
    text = (
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "nvidia"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'
        'base_runtime_spec = "/etc/spec.json"\nsnapshotter = ""\nprivileged_without_host_devices = true\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]\n'
        'BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"\nSystemdCgroup = true\n'
    )
    entry = ours(edit(text).after, 2)
    assert entry["options"] == {"BinaryName": "/usr/bin/grit-runtime", "SystemdCgroup": True}
    assert entry["base_runtime_spec"] == "/etc/spec.json" and entry["privileged_without_host_devices"] is True
    assert "snapshotter" not in entry
    kata = text.replace("io.containerd.runc.v2", "io.containerd.kata.v2")
    assert ours(edit(kata).after, 2)["options"] == {"BinaryName": "/usr/bin/grit-runtime"}


def test_where_the_entry_goes() -> None:
    imports = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
    made = edit(imports, (2, 1, 9))
    assert (made.path, made.before) == ("/etc/containerd/conf.d/grit-runtime.toml", None)
    assert made.after.startswith("version = 3\n") and ours(made.after, 3)
    there = File(made.path, made.after)
    assert plan([File(MAIN, imports), there], MAIN, (2, 1, 9), Handler()) is None
    other = File(made.path, "version = 3\n")
    assert edit(imports, (2, 1, 9), other).before == other.text
    assert edit(imports.replace("/etc/containerd/", ""), (2,)).path == made.path, "relative to the main file"
    assert edit(imports.replace("conf.d/*.toml", "x.toml"), (2,)).path == MAIN, "one file is no folder"
    # 1.x: the last file that names the plugin wins, whole; 2.x merges
    last = File("/etc/containerd/conf.d/99-nvidia.toml", V2 + 'nvidia]\nruntime_type = "io.containerd.runc.v2"\n')
    runc = V2 + 'runc]\nruntime_type = "io.containerd.runc.v2"\n'
    made = edit(runc, (1, 7, 24), last)
    assert made.path == last.path and "runtimes.runc]" in made.after
    assert "runtimes.runc]" not in edit(runc, (2, 1, 9), last).after
    # no file: the daemon says which layout; an empty one is as good as none
    made = edit("", (2, 1, 9))
    new = plan([], MAIN, (2, 1, 9), Handler())
    assert new and (new.path, new.before, new.after) == (MAIN, None, made.after)
    assert toml.loads(edit("# nothing\n", (1, 7)).after)["version"] == 2


def test_a_handler_that_is_there_is_completed_and_given_back() -> None:
    before = (
        V2 + 'grit] # mine\nruntime_type = "io.containerd.runc.v2"\npod_annotations = ["mine/*"] # and this\n'
        "privileged_without_host_devices = true\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n"
        'runtime_type = "io.containerd.runc.v2"\n'
    )  # fmt: skip
    made = edit(before)
    entry = ours(made.after, 2)
    assert entry["pod_annotations"] == ["mine/*", "grit.dev/*"] and entry["privileged_without_host_devices"] is True
    assert entry["options"]["BinaryName"] == "/usr/bin/grit-runtime" and "# mine" in made.after
    assert plan([File(MAIN, made.after)], MAIN, (1, 7), Handler()) is None
    back = toml.loads(undone(File(MAIN, made.after), made.undo))
    grit = back["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["grit"]
    assert not grit.pop("options", None) and grit == toml.loads(before)["plugins"]["io.containerd.grpc.v1.cri"][
        "containerd"]["runtimes"]["grit"]  # fmt: skip


def test_tables_written_inline_are_edited_with_comments_kept() -> None:
    before = (
        "version = 3 # three\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n# runtimes of this node\n"
        "runtimes = {runc = {runtime_type = 'io.containerd.runc.v2'}}\ndefault_runtime_name = 'runc' # last\n"
    )
    made = edit(before, (2, 1, 9))
    assert ours(made.after, 3)["options"]["BinaryName"] == "/usr/bin/grit-runtime"
    for comment in ("# three", "# runtimes of this node", "# last"):
        assert comment in made.after
    assert toml.same(undone(File(MAIN, made.after), made.undo), toml.loads(before))


def test_an_edit_that_would_change_more_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tomlkit.dumps", lambda document: "version = 2\n")
    with pytest.raises(Refusal, match="would change more than it should"):
        toml.set_value(File(MAIN, "version = 2\nroot = '/x'\n"), ["root"], "/y")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version = 2\n[plugins\n", "containerd-config-unknown"),
        ("version = 2\nversion = 2\n", "containerd-config-unknown"),
        ("version = 4\n", "containerd-config-unknown"),
        ('version = "2"\n', "containerd-config-unknown"),
        ("version = [2]\n", "containerd-config-unknown"),
        ("version = 2\nplugins = 5\n", "containerd-config-unknown"),
        ('version = 2\n[plugins]\n"io.containerd.grpc.v1.cri" = "x"\n', "containerd-config-unknown"),
        (V2.replace("runtimes.", "") + "]\nruntimes = 5\n", "containerd-config-unknown"),
        ("a" + "[" * 5000, "containerd-config-unknown"),
        ("[plugins.cri]\n", "containerd-config-old"),
        ('version = 1\nroot = "/x"\n', "containerd-config-old"),
        ('disabled_plugins = ["cri"]\nversion = 2\n', "containerd-cri-disabled"),
        ('version = 3\ndisabled_plugins = ["io.containerd.cri.v1.runtime"]\n', "containerd-cri-disabled"),
        (V2 + 'grit]\nruntime_type = "io.containerd.grit.v1"\n', "handler-taken"),
        ("", "containerd-config-unknown"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        edit(text, None)
    assert caught.value.reason == reason
