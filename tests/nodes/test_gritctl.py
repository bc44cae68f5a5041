"""gritctl on two real nodes: containers by the names that people have for them, and real checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.nodes.cri import Cri, Pod
from tests.nodes.cri.kept import configured
from tests.nodes.moving import KILL_CRIU, SMALL, annotation, base, fault_at_stage, images, move, record
from tests.testbed import CommandFailed, Container, Node, Testbed
from tests.testbed.container import ask, ready
from tests.testbed.node import until

IMAGE = "localhost/workload"
SHIM = ["podman", "--runtime", "/usr/bin/grit-runtime"]
#: what the workload holds
HELD = {"inotify", "fanotify", "tcp-established", "file-lock", "ghost-file"}


def told(node: Node, *words: str, code: int = 0) -> dict[str, Any]:
    """The JSON of a gritctl command that exits with `code`."""
    done = node.run(["gritctl", *words, "--json"], check=False, timeout=120)
    assert done.returncode == code, (words, done.stdout[-4000:], done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["kind"], found["version"]) == (words[0], 1)
    return found


def screen(node: Node, *words: str, code: int = 0) -> str:
    """What a person sees who has 80 columns and no colour."""
    done = node.run(["gritctl", *words], check=False, timeout=120)
    assert done.returncode == code, (words, done.stdout[-4000:], done.stderr)
    assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    return done.stdout


@pytest.fixture
def pod(node: Node) -> Iterator[Pod]:
    """A pod whose sandbox runs, and nothing of it afterwards."""
    cri = Cri(node)
    made = Pod(cri, "named")
    try:
        yield made
    finally:
        made.remove()
        cri.close()


def test_check_takes_a_pods_name(node: Node, pod: Pod) -> None:
    """All its containers but the sandbox, or one of them; as NAMESPACE/POD, POD, POD/CONTAINER, container, short id."""
    main, peer = pod.start("main", env=SMALL), pod.peer()
    for name in ("named", "default/named"):
        found = told(node, "check", name)
        assert found["ready"] and {one["id"] for one in found["containers"]} == {main.id, peer.id}
        rows = next(one["findings"] for one in found["containers"] if one["id"] == main.id)
        assert {row["reason"] for row in rows} >= HELD and {row["action"] for row in rows} <= {"handled", "warning"}
    for name in ("named/main", "main", main.id[:13], main.id):
        (one,) = told(node, "check", name)["containers"]
        assert one["id"] == main.id and {"main", "named", "default/named", "named/main"} <= set(one["names"])
    text = screen(node, "check", "named")
    assert text.count("Ready for a checkpoint.") == 2 and "(main)" in text and "(peer)" in text
    assert main.ask()["bad"] == []


def test_check_takes_the_name_of_podmans_container(node: Node) -> None:
    if node.run(["podman", "image", "exists", IMAGE], check=False).returncode:
        node.run(["podman", "load", "--quiet", "--input", "/srv/workload.tar"])
    words = ["--cap-add", "SYS_ADMIN", "--network", "none", "--env", "GRIT_MEMORY=4", IMAGE]
    try:
        id = node.run([*SHIM, "run", "--detach", "--name", "podmans", *words]).stdout.strip()
        pid = int(node.run(["podman", "inspect", "--format", "{{.State.Pid}}", "podmans"]).stdout)
        until("the workload is ready", lambda: ready(node, pid))
        for name in ("podmans", id, id[:12]):
            found = told(node, "check", name)
            (one,) = found["containers"]
            assert found["ready"] and (one["id"], one["pid"]) == (id, pid)
            assert {row["reason"] for row in one["findings"]} >= HELD
        assert "Ready for a checkpoint." in screen(node, "check", "podmans")
        assert ask(node, pid, "check")["bad"] == []
    finally:
        node.run([*SHIM, "rm", "--all", "--force", "--time", "0"])


def test_check_says_which_container_is_not_ours(node: Node) -> None:
    for runtime, expected in (("runc", ["runtime-other"]), ("grit", [])):
        container = node.start(f"by-{runtime}", image="busybox", runtime=runtime)
        try:
            (one,) = told(node, "check", f"by-{runtime}")["containers"]
            assert [row["reason"] for row in one["findings"]] == expected
        finally:
            container.delete()


@pytest.fixture
def moved(testbed: Testbed) -> Iterator[tuple[Container, str]]:
    """The workload's checkpoint, made on the first node and moved to the second, where it lies below restore.roots."""
    name = "inspected"
    container = testbed.a.start(name, env=SMALL)
    try:
        move(container, name, testbed.b)
        yield container, f"{base(name)}/{name}"
    finally:
        for node in testbed.nodes:
            node.run(["rm", "-rf", base(name)])


def test_a_real_checkpoint(testbed: Testbed, moved: tuple[Container, str]) -> None:
    node, (_, place) = testbed.b, moved
    found = told(node, "inspect", place)
    assert found["problems"] == [] and found["manifest"]["node"]["hostname"] == testbed.a.name
    first, second = found["processes"]
    assert first["parent"] == 0 and second["parent"] == first["pid"] and first["command"][-1].endswith("workload.py")
    assert sum(one["stored"] for one in found["processes"]) > 4 << 20
    assert {one["state"] for one in found["sockets"]} == {"listen", "established"}
    assert any(one["deleted"] == "ghost" and one["name"] == "/data/upper/ghost" for one in found["files"])
    roles = {one["mountpoint"]: one["role"] for one in found["mounts"]}
    assert (roles["/"], roles["/etc/hosts"], roles["/proc/keys"]) == ("root", "external", "mask")
    assert any("libcuda" in point for point, role in roles.items() if role == "external")
    assert {"memory", "rootfs changes"} <= {one["part"] for one in found["sizes"]["parts"]}
    text = screen(node, "inspect", place)
    for part in (f"node: {testbed.a.name}", "workload.py", "libcuda", "/data/upper/ghost (deleted", "rootfs changes"):
        assert part in text or part in screen(node, "inspect", "--all", place), part

    archive = "/tmp/inspected.tar"
    node.run(["tar", "-cf", archive, "-C", place, "."])
    try:
        assert [one["pid"] for one in told(node, "inspect", archive)["processes"]] == [first["pid"], second["pid"]]
        assert "archive-not-verified" in node.run(["gritctl", "verify", archive], check=False).stderr
    finally:
        node.run(["rm", archive])

    for one in testbed.nodes:
        if one is testbed.a:
            node.push(base("inspected"), one, base("inspected"))
        gates = told(one, "verify", "--node", place)["gates"]
        assert {gate["level"] for gate in gates} == {"ok"}
        assert {"images", "base", "hashes", "criu", "node"} <= {gate["name"] for gate in gates}
        assert "whole and unchanged, and fits this node" in screen(one, "verify", "--node", place)


def test_inspect_of_the_archives_of_containerd_and_podman(testbed: Testbed) -> None:
    """What CRI's CheckpointContainer writes, and podman's export: the container's image is told by them."""
    node, folder = testbed.b, "/tmp/archives"
    node.path(folder).mkdir(exist_ok=True)
    cri = Cri(node)
    pod = Pod(cri, "archived")
    try:
        main = pod.start("main", env=SMALL)
        place = f"{folder}/cri.tar"
        cri.call("CheckpointContainer", 100, container_id=main.id, location=place, timeout=90)
        found = told(node, "inspect", place)
        assert found["archive"] and found["problems"] == [] and len(found["processes"]) == 2
        assert "workload" in found["image"] and f"image: {found['image']}" in screen(node, "inspect", place)
        made = found["manifest"]["container"]
        assert made["id"] == main.id and f"container: main ({main.id[:12]})" in screen(node, "inspect", place)
    finally:
        pod.remove()
        cri.close()
    if node.run(["podman", "image", "exists", IMAGE], check=False).returncode:
        node.run(["podman", "load", "--quiet", "--input", "/srv/workload.tar"])
    try:
        node.run([*SHIM, "run", "--detach", "--name", "archived", "--network", "none", IMAGE, "sleep", "1000"])
        place = f"{folder}/podman.tar.gz"
        node.run([*SHIM, "container", "checkpoint", "--compress", "gzip", "--export", place, "archived"])
        found = told(node, "inspect", place)
        assert found["archive"] and found["problems"] == []
        assert [one["command"] for one in found["processes"]] == [["sleep", "1000"]] and "workload" in found["image"]
    finally:
        node.run([*SHIM, "rm", "--all", "--force", "--time", "0"])
        node.run(["rm", "-rf", folder])


def test_diagnose_of_a_failed_dump_by_the_containers_id(node: Node) -> None:
    """CRIU is killed in the midst of it."""
    container = node.start("undone", env=SMALL)
    try:
        with fault_at_stage(node, "network-lock", KILL_CRIU), pytest.raises(CommandFailed):
            container.checkpoint(images("undone"))
        (found,) = told(node, "diagnose", "undone", code=1)["logs"]
        assert found["operation"] == "dump" and not found["finished"]
        assert [cause["reason"] for cause in found["causes"]] == ["log-cut"]
        assert "the log ends in stage" in " ".join(screen(node, "diagnose", "undone", code=1).split())
        assert container.ask()["bad"] == []
    finally:
        container.delete()
        node.run(["rm", "-rf", base("undone")])


WAITING = """
import signal, socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
signal.pause()
"""


def test_a_connection_that_nobody_has_accepted_is_dropped_as_check_says(node: Node) -> None:
    """runc 1.3 has an option for it, for runc 1.1 it is in CRIU's configuration; without it CRIU gives up."""
    container = node.start("waiting", args=["/usr/bin/python3", "-I", "-S", "-c", WAITING])
    try:
        (one,) = told(node, "check", "waiting")["containers"]
        assert ("in-flight-connection", "warning") in {(row["reason"], row["action"]) for row in one["findings"]}
        container.checkpoint(images("waiting"))
        assert told(node, "verify", f"{base('waiting')}/waiting")["ok"]
    finally:
        container.delete()
        node.run(["rm", "-rf", base("waiting")])


CORKED = """
import signal, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("127.0.0.1", 9))
s.setsockopt(17, 1, 1)  # UDP_CORK
s.send(b"held back")
signal.pause()
"""


def test_diagnose_of_what_no_look_could_have_found(node: Node) -> None:
    container = node.start("corked", args=["/usr/bin/python3", "-I", "-S", "-c", CORKED])
    try:
        assert told(node, "check", "corked")["ready"]
        with pytest.raises(CommandFailed, match="socket-corked"):
            container.checkpoint(images("corked"))
        (found,) = told(node, "diagnose", "corked", code=1)["logs"]
        (cause,) = found["causes"]
        assert cause["reason"] == "socket-corked" and re.search(r"process \d+ \(python3\) .*fd \d", cause["message"])
        assert any("corked" in line["text"] for line in found["evidence"])
        assert container.status()[1] == "RUNNING"
    finally:
        container.delete()
        node.run(["rm", "-rf", base("corked")])


def levels(found: dict[str, Any]) -> dict[str, str]:
    return {gate["reason"]: gate["level"] for gate in found["gates"] if gate["reason"]}


def test_gates_of_a_node_and_passing_them(testbed: Testbed, moved: tuple[Container, str]) -> None:
    """A processor and a CRIU that this node hasn't: verify names both gates and passes them only by name; a restore
    passes what the admin permits, and puts it on record."""
    node, (_, place) = testbed.b, moved
    where = node.path(f"{images('inspected')}/grit.json")
    manifest = json.loads(where.read_text())
    manifest["node"]["cpu"] += " avx4096"
    where.write_text(json.dumps(manifest))
    found = told(node, "verify", "--node", place, code=1)
    assert not found["ok"] and levels(found) == {"cpu-mismatch": "bad"}
    text = screen(node, "verify", "--node", place, code=1)
    assert "avx4096" in text and "must not be restored here" in text
    found = told(node, "verify", "--node", "--allow", "cpu-mismatch", place)
    assert found["ok"] and levels(found) == {"cpu-mismatch": "allowed"}
    assert "but what was allowed: cpu-mismatch." in screen(node, "verify", "--node", "--allow", "cpu-mismatch", place)
    manifest["node"]["criu"] = "99.0"
    where.write_text(json.dumps(manifest))
    found = told(node, "verify", "--node", "--allow", "cpu-mismatch", place, code=1)
    assert levels(found) == {"cpu-mismatch": "allowed", "criu-older": "bad"}

    notes = {**annotation("inspected"), "grit.dev/allow": "cpu-mismatch, criu-older"}
    with pytest.raises(Exception, match="allow-not-permitted"):
        node.start("inspected", annotations=notes, env=SMALL)
    with configured(node, allow='["cpu-mismatch", "criu-older"]'):
        again = node.start("inspected", annotations=notes, env=SMALL, wait=False)
        try:
            assert again.ask()["bad"] == []
        finally:
            again.delete()
    kept = record(node, "inspected")
    assert (kept["operation"], kept["result"]) == ("restore", "ok")
    passed = [note for note in kept["notes"] if note.startswith("allowed by annotation: ")]
    assert [note.split(": ")[1] for note in passed] == ["cpu-mismatch", "criu-older"] and "avx4096" in passed[0]
    assert "allowed by annotation: cpu-mismatch" in node.run(["gritctl", "logs", "inspected"]).stdout


def test_one_changed_byte(testbed: Testbed, moved: tuple[Container, str]) -> None:
    node, (_, place) = testbed.b, moved
    largest = max(node.path(images("inspected")).glob("pages-*.img"), key=lambda path: path.stat().st_size)
    with open(largest, "r+b") as file:
        file.seek(largest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    found = told(node, "verify", place, code=1)
    assert levels(found) == {"image-changed": "bad"}
    assert re.search(rf"{largest.name}.*content", json.dumps(found))
    assert "image-changed" in screen(node, "verify", "--allow", "image-changed", place)


def test_the_node_screens(node: Node) -> None:
    """doctor, install --dry-run, recover, logs: on a node that works."""
    found = told(node, "doctor")
    assert found["ready"] and not [row for row in found["rows"] if row["level"] in ("bad", "unknown")]
    assert {"package", "chain", "CRIU", "kernel", "containerd"} <= {row["check"] for row in found["rows"]}
    assert "This node is ready." in screen(node, "doctor")
    assert "has it already" in screen(node, "install", "--dry-run")
    assert "Nothing to recover." in screen(node, "recover", "--dry-run")
    screen(node, "gpu-test", "--help")
