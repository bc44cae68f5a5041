"""gritctl install with the nodes' real containerd: configuration of version 2 on node A (1.7), 3 on node B (2.x)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from grit_runtime.ctl import containerd, toml
from grit_runtime.ctl.containerd import File

from tests.nodes.cri import Cri, Pod
from tests.nodes.cri.messages import RUNNING
from tests.testbed import Node

MAIN = "/etc/containerd/config.toml"
FOLDER = "/etc/containerd/conf.d"
# As Debian packages it: no runtime is named, so that 1.7 has its built-in runc only until one is.
DEBIAN = """version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""


@pytest.fixture
def untouched(node: Node) -> Iterator[Node]:
    """The node, which has its own configuration again afterwards."""
    before = node.path(MAIN).read_bytes()
    yield node
    node.run(["gritctl", "uninstall"], check=False)
    node.path(MAIN).write_bytes(before)


def seen(node: Node) -> dict[str, object]:
    """The runtimes that containerd itself sees."""
    file = File("dump", node.run(["containerd", "--config", MAIN, "config", "dump"]).stdout)
    runtimes = containerd.effective([file], containerd.version([file], None))["runtimes"]
    assert isinstance(runtimes, dict)
    return runtimes


def files(node: Node) -> dict[str, tuple[int, bytes]]:
    """What is in the folders that install writes to."""
    found = {}
    for folder in ("/etc/containerd", "/etc/containers", "/etc/grit-runtime"):
        for path in sorted(node.path(folder).rglob("*")):
            found[str(path)] = (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.mark.parametrize("kind", ["default", "debian", "imports", "none"])
def test_the_handler_is_seen_and_everything_goes_back(untouched: Node, kind: str) -> None:
    node = untouched
    dropin = kind == "imports" and node.recipe.suite != "trixie"
    if kind == "none":
        node.path(MAIN).unlink()
    elif kind == "default":
        node.write(MAIN, node.run(["containerd", "config", "default"]).stdout)
    else:
        more = f'imports = ["{FOLDER}/*.toml"]\n' if kind == "imports" else ""
        node.write(MAIN, more + ("version = 3\n" if dropin else DEBIAN), mode=0o600)
    before = files(node)

    done = node.run(["gritctl", "install"])
    runtimes = seen(node)
    assert node.path(f"{FOLDER}/{containerd.DROPIN}").exists() is dropin, "2.x imports a file of ours"
    assert {"runc", "grit"} <= set(runtimes), done.stdout
    grit = runtimes["grit"]
    assert isinstance(grit, dict)
    assert grit["options"]["BinaryName"] == "/usr/bin/grit-runtime"
    assert grit["runtime_type"] == containerd.RUNC
    assert grit["container_annotations"] == containerd.CONTAINER_ANNOTATIONS
    assert grit["pod_annotations"] == containerd.POD_ANNOTATIONS
    told = node.run(["podman", "--runtime", "grit", "info", "--format", "{{.Host.OCIRuntime.Path}}"], check=False)
    assert told.stdout.strip() == "/usr/bin/grit-runtime", told.stderr

    after = files(node)
    again = node.run(["gritctl", "install"]).stdout
    assert files(node) == after and "has it already" in again
    node.run(["gritctl", "uninstall"])
    assert files(node) == before


def test_the_daemon_starts_with_it(untouched: Node) -> None:
    node = untouched
    before = node.path(MAIN).read_bytes()
    node.write(MAIN, DEBIAN)
    node.run(["gritctl", "install"])
    try:
        node.restart_containerd()
        lines = node.ctr("plugins", "ls").splitlines()
        cri = [line.split() for line in lines if line.startswith(("io.containerd.grpc.v1", "io.containerd.cri.v1"))]
        status = {fields[1]: fields[-1] for fields in cri}
        assert status["cri"] == "ok" and status.get("runtime", "ok") == "ok", node.containerd_log()[-3000:]
    finally:
        node.path(MAIN).write_bytes(before)
        node.restart_containerd()


def test_a_pod_runs_through_the_handler_that_was_installed(node_a: Node) -> None:
    """On node A: on B runc can't set the cpu weight that the CRI gives every sandbox, as cpu stays with version 1."""
    node = node_a
    before = node.path(MAIN).read_text()
    plugin = containerd.PLUGIN[int(toml.loads(before)["version"])]
    mine = ["plugins", plugin, "containerd", "runtimes", "grit"]
    node.write(MAIN, toml.without_table(File(MAIN, before), mine))
    assert "grit" not in seen(node)
    node.run(["gritctl", "install"])
    try:
        node.restart_containerd()
        pod = Pod(Cri(node), "installed", annotations={"grit.dev/note": "from the pod", "other/note": "no"})
        try:
            notes = {"grit.dev/mine": "1", "other/mine": "no"}
            command = ["tail", "-f", "/dev/null"]
            container = pod.start("main", image="busybox", command=command, restarts=0, annotations=notes)
            assert container.status()["state"] == RUNNING
            bundle = node.path(f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container.id}")
            found = json.loads((bundle / "config.json").read_text())["annotations"]
            assert found["org.criu.config"] == "/usr/share/grit-runtime/criu.conf", "it went through grit-runtime"
            assert (found["grit.dev/note"], found["grit.dev/mine"]) == ("from the pod", "1")
            assert found["io.kubernetes.container.restartCount"] == "0"
            assert not any(name.startswith("other/") for name in found)
        finally:
            pod.remove()
            pod.cri.close()
    finally:
        node.run(["gritctl", "uninstall"])
        node.path(MAIN).write_text(before)
        node.restart_containerd()


def test_a_configuration_that_containerd_refuses_is_put_back(untouched: Node) -> None:
    node = untouched
    # valid TOML of a version that is understood, but not by containerd itself
    broken = 'version = 2\noom_score = "high"\n'
    node.write(MAIN, broken)
    before = files(node)
    done = node.run(["gritctl", "install", "--only", "containerd"], check=False)
    assert done.returncode == 1 and "gritctl: containerd-not-proved: " in done.stderr
    assert files(node) == before
    node.write(MAIN, "version = 2\n[plugins\n")
    done = node.run(["gritctl", "install", "--only", "containerd"], check=False)
    assert done.returncode == 1 and "gritctl: containerd-config-unknown: " in done.stderr
    assert node.path(MAIN).read_text() == "version = 2\n[plugins\n"


def test_doctor_on_a_real_node(untouched: Node) -> None:
    done = untouched.run(["gritctl", "doctor"], check=False, timeout=120)
    assert "Traceback" not in done.stderr and all(len(line) <= 80 for line in done.stdout.splitlines())
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    for check in ("package", "configuration", "kernel", "CRIU", "network lock"):
        assert " ok " in rows[check], done.stdout
    assert toml.loads(untouched.path("/etc/grit-runtime/config.toml").read_text())["runtime"]["next"] in rows["chain"]
