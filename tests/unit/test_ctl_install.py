"""gritctl install and uninstall on a folder that stands for a node: what is written, and that it all goes back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from grit_runtime.checks import Refusal, refuse
from grit_runtime.ctl import changes, proof, toml
from grit_runtime.ctl.containerd import Edit, File, Handler, effective
from grit_runtime.ctl.main import main
from grit_runtime.ctl.targets import chain_problem, choose_next, plan_template

DATA = Path(__file__).parent / "data" / "containerd"
K3S = "var/lib/rancher/k3s/agent/etc/containerd"
OURS = '# the runtime behind\n[runtime]\nnext = "/usr/bin/nvidia-container-runtime" # here\n'


def node(root: Path, files: dict[str, str]) -> Path:
    """A node's root with `files`, grit-runtime's configuration and nvidia-container-runtime in their places."""
    (root / "var/lib").mkdir(parents=True)
    usual = {"usr/bin/nvidia-container-runtime": "", "etc/grit-runtime/config.toml": OURS}
    for name, text in {**usual, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        path.chmod(0o640 if "etc" in name else 0o755)
    return root


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `root` but our own record: mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        if root / "var/lib/grit-runtime" not in (path, path.parent):
            found[str(path)] = (path.stat().st_mode, b"" if path.is_dir() else path.read_bytes())
    return found


def gritctl(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="gritctl")


def install(root: Path, *args: object) -> Result:
    return gritctl("install", "--root", root, *args)


def full(root: Path) -> Path:
    """A node with everything that is understood, in both layouts."""
    v2, v3 = (DATA / f"k3s-{v}-rendered.toml" for v in ("1.31", "1.33"))
    grit = '# grit\nBinaryName = "/usr/bin/nvidia-container-runtime"\nSystemdCgroup = true'
    return node(
        root,
        {
            "etc/containerd/config.toml": (DATA / "containerd-1.7.24-default.toml").read_text(),
            "etc/containerd/grit.toml": grit,
            "etc/containers/containers.conf": "[engine]\n",
            "usr/bin/podman": "",
            f"{K3S}/config.toml": v2.read_text(),
            f"{K3S.replace('k3s', 'rke2')}/config.toml": v3.read_text().replace("/k3s/", "/rke2/"),
        },
    )


def test_everything_is_configured_once_and_put_back_byte_for_byte(tmp_path: Path) -> None:
    root = full(tmp_path)
    before = tree(root)
    dry = install(root, "--dry-run")
    assert dry.exit_code == 0 and tree(root) == before and not (root / "var/lib/grit-runtime").exists()
    assert '+    BinaryName = "/usr/bin/grit-runtime"' in dry.output and "would change" in dry.output

    first = install(root)
    assert first.exit_code == 0, first.output
    after = tree(root)
    cri = effective([File("", (root / "etc/containerd/config.toml").read_text())], 2)
    assert cri["runtimes"]["grit"]["options"] == {"BinaryName": "/usr/bin/grit-runtime", "SystemdCgroup": False}
    template = (root / K3S / "config.toml.tmpl").read_text()
    assert template.startswith('{{ template "base" . }}\n') and "SystemdCgroup = true" in template
    dropin = root / K3S.replace("k3s", "rke2") / "config-v3.toml.d" / "grit-runtime.toml"
    assert effective([File("", dropin.read_text())], 3)["runtimes"]["grit"]["options"]["SystemdCgroup"] is True
    grit = (root / "etc/containerd/grit.toml").read_text()
    assert grit == '# grit\nBinaryName = "/usr/bin/grit-runtime"\nSystemdCgroup = true'
    podman = toml.loads((root / "etc/containers/containers.conf.d/grit-runtime.conf").read_text())
    assert podman == {"engine": {"runtimes": {"grit": ["/usr/bin/grit-runtime"]}}}
    assert (root / "etc/containerd/config.toml").stat().st_mode & 0o777 == 0o640

    second = install(root)
    assert second.exit_code == 0 and tree(root) == after and "changed" not in second.output

    dry = gritctl("uninstall", "--root", root, "--dry-run")
    assert dry.exit_code == 0 and tree(root) == after and "would be put back" in dry.output
    assert gritctl("uninstall", "--root", root).exit_code == 0
    assert tree(root) == before
    assert gritctl("uninstall", "--root", root).exit_code == 1


def test_what_others_edit_in_between_stays(tmp_path: Path) -> None:
    root = node(tmp_path, {"etc/containerd/config.toml": (DATA / "containerd-2.1.9-default.toml").read_text()})
    config = root / "etc/containerd/config.toml"
    before = config.read_text()
    assert install(root).exit_code == 0
    config.write_text("# somebody's\n" + config.read_text())
    assert install(root).exit_code == 0, "and a second install doesn't take the edited file for what was there"
    assert gritctl("uninstall", "--root", root).exit_code == 0
    assert config.read_text() == "# somebody's\n" + before

    # another handler after somebody's edit, then an edit inside ours, then a lost backup
    assert install(root).exit_code == 0
    config.write_text("# more\n" + config.read_text())
    assert install(root, "--handler", "other").exit_code == 0
    assert gritctl("uninstall", "--root", root).exit_code == 0
    assert config.read_text() == "# more\n# somebody's\n" + before
    assert install(root).exit_code == 0
    assert install(root, "--handler", "other").exit_code == 0
    text = config.read_text()
    config.write_text(text.replace('pod_annotations = ["grit.dev/*"]', 'pod_annotations = ["x/*"]', 1))
    assert gritctl("uninstall", "--root", root).exit_code == 0
    runtimes = effective([File("", config.read_text())], 3)["runtimes"]
    assert set(runtimes) == {"runc"}
    config.write_text(before)
    assert install(root).exit_code == 0
    Path(f"{config}{changes.BACKUP}").write_text("not what it was")
    gone = gritctl("uninstall", "--root", root)
    assert gone.exit_code == 1 and "gritctl: backup-missing: " in gone.output
    assert config.read_text() == before, "our entry was cut out all the same"


def test_a_broken_file_is_left_alone_and_the_others_are_configured(tmp_path: Path) -> None:
    root = node(tmp_path, {"etc/containerd/config.toml": "version = 2\n[plugins\n", "usr/bin/podman": ""})
    result = install(root)
    assert result.exit_code == 1
    assert "gritctl: containerd-config-unknown: /etc/containerd/config.toml is left as it is, because" in result.output
    assert (root / "etc/containerd/config.toml").read_text() == "version = 2\n[plugins\n"
    assert (root / "etc/containers/containers.conf.d/grit-runtime.conf").exists()
    bare = install(node(tmp_path / "bare", {}))
    assert bare.exit_code == 1 and "nothing-to-configure" in bare.output
    assert install(root, "--handler", "../x").exit_code == 1


def test_the_chain(tmp_path: Path) -> None:
    # the classic mistake is named
    plain = OURS.replace("nvidia-container-runtime", "runc")
    root = node(
        tmp_path, {"etc/grit-runtime/config.toml": plain, "usr/bin/runc": "", "dev/nvidiactl": "", "usr/bin/podman": ""}
    )
    result = install(root)
    assert result.exit_code == 1 and "gritctl: chain-plain-runc: this node has GPUs" in result.output
    assert "gritctl install --next /usr/bin/nvidia-container-runtime" in result.output
    # and put right, the comment kept
    assert install(root, "--next", "/usr/bin/nvidia-container-runtime").exit_code == 0
    assert (root / "etc/grit-runtime/config.toml").read_text() == OURS
    assert install(root, "--next", "/usr/bin/missing").exit_code == 1
    assert chain_problem("/usr/bin/runc", False, None) is None
    # a next runtime that isn't there: NVIDIA's from wherever it is, a plain one only where there is no GPU
    there = {"/usr/bin/runc", "/opt/nvidia-container-runtime"}.__contains__
    assert choose_next("/usr/bin/runc", None, False, there) is None
    assert choose_next("/usr/bin/x", "/opt/nvidia-container-runtime", True, there) == "/opt/nvidia-container-runtime"
    assert choose_next("/usr/bin/x", None, False, there) == "/usr/bin/runc"
    for gpu, reason in ((True, "nvidia-toolkit-missing"), (False, "next-runtime-missing")):
        with pytest.raises(Refusal) as caught:
            choose_next("/usr/bin/x", None, gpu, lambda path: False)
        assert caught.value.reason == reason


def test_the_gpu_operators_toolkit_is_found(tmp_path: Path) -> None:
    toolkit = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
    text = (
        (DATA / "k3s-1.31-rendered.toml").read_text().replace("/usr/bin/nvidia-container-runtime", "/opt/x" + toolkit)
    )
    files = {"etc/containerd/config.toml": text, "opt/x" + toolkit: "", "dev/nvidiactl": ""}
    root = node(tmp_path, files)
    (root / "usr/bin/nvidia-container-runtime").unlink()
    assert install(root).exit_code == 0
    assert f'next = "/opt/x{toolkit}" # here' in (root / "etc/grit-runtime/config.toml").read_text()
    assert gritctl("uninstall", "--root", root).exit_code == 0
    assert (root / "etc/grit-runtime/config.toml").read_text() == OURS


def test_templates_of_k3s() -> None:
    like = {"options": {"SystemdCgroup": True}}
    admin = '{{ template "base" . }}\n[debug]\n  level = "debug"\n'
    edit = plan_template("/t", admin, 3, Handler(), like)
    assert edit and edit.after.startswith(admin + "\n#")
    assert plan_template("/t", edit.after, 3, Handler(), like) is None
    with pytest.raises(Refusal, match="handler-taken"):
        plan_template(
            "/t", admin + "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'grit']\n", 3, Handler(), {}
        )


def test_a_failed_proof_or_a_race_puts_everything_back(tmp_path: Path) -> None:
    root = node(tmp_path, {"etc/x": "a\n"})
    before = tree(root)

    def fail() -> None:
        raise refuse("containerd-not-proved", path="/etc/x", why="no")

    for path, old in (("/etc/x", "a\n"), ("/etc/new/y", None)):
        with pytest.raises(Refusal, match="containerd-not-proved"):
            changes.apply(str(root), Edit(path, old, "b\n", []), fail)
    assert tree(root) == before and changes.installed(str(root)) == []
    with pytest.raises(Refusal, match="file-changed"):
        changes.apply(str(root), Edit("/etc/x", "c\n", "b\n", []))
    assert tree(root) == before
    # what a link names is written, not the link
    os.symlink("x", root / "etc/link")
    changes.apply(str(root), Edit("/etc/link", "a\n", "b\n", []))
    assert (root / "etc/link").is_symlink() and (root / "etc/x").read_text() == "b\n"
    assert json.loads((root / "var/lib/grit-runtime/install.json").read_text())["files"]["/etc/link"]["existed"]


def test_what_containerd_says_is_compared() -> None:
    runc: dict[str, Any] = {"runtimes": {"runc": {}}}
    grit: dict[str, Any] = {"grit": {"options": {"BinaryName": "/usr/bin/grit-runtime"}}}
    assert proof.proved(runc, {"runtimes": {"runc": {}, **grit}}, Handler()) is None
    both: dict[str, Any] = {"runtimes": {"runc": {}, "nvidia": {}}}
    assert proof.proved(both, {"runtimes": {"runc": {}, **grit}}, Handler()) == "the runtimes nvidia would be lost"
    assert "default runtime runc" in str(proof.proved({}, {"runtimes": grit}, Handler()))
    assert "no handler grit" in str(proof.proved(runc, runc, Handler()))
    assert proof.proved(runc, "cannot parse", Handler()) == "cannot parse"
