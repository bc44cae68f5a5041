"""Containers move between the nodes, through stock containerd and by hand, and go on as the same processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.nodes.moving import (
    SMALL,
    Bundle,
    Spec,
    annotation,
    base,
    bundle,
    images,
    low_level,
    move,
    nothing_remains,
    record,
    spec_of,
    well,
)
from tests.testbed import Container, Node, Testbed, until
from tests.testbed.driver import VERSION

DRIVER = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}"
MEMORY = {"GRIT_MEMORY": "64"}


def restored(node: Node, name: str, checkpoint: str, **more: object) -> Container:
    return node.start(name, annotations=annotation(checkpoint), wait=False, **more)  # type: ignore[arg-type]


def masks(container: Container) -> dict[str, str]:
    """What covers /proc and /sys, by mountpoint: "empty", "null", "ro" (read-only), or else its file system."""
    found = {}
    for line in container.node.path(f"/proc/{container.pid}/mountinfo").read_text().splitlines():
        words = line.split()
        point = words[4]
        if point.startswith(("/proc/", "/sys/")) and not point.startswith("/sys/fs/cgroup"):
            place = container.path(point)
            if place.is_dir() and not os.listdir(place):
                with pytest.raises(OSError):
                    (place / "new").write_text("")
                found[point] = "empty"
            elif os.stat(place).st_rdev == os.makedev(1, 3):
                found[point] = "null"
            else:
                found[point] = "ro" if "ro" in words[5].split(",") else words[words.index("-") + 1]
    assert {"empty", "null", "ro"} <= set(found.values())
    return found


def is_of(container: Container) -> None:
    """The container has what its node gives: host name, hosts file, device numbers, driver's files."""
    node = container.node
    assert container.ask("identity")["hostname"] == node.name
    assert container.name in container.path("/etc/hosts").read_text()
    for name, major, minor in node.recipe.devices:
        assert os.stat(container.path(f"/dev/{name}")).st_rdev == os.makedev(major, minor), name
    here = node.path(f"{node.recipe.driver}/libcuda.so.{VERSION}")
    assert os.path.samestat(os.stat(container.path(DRIVER)), os.stat(here))
    held = os.stat(next(Path(f"{node.path('/proc')}/{container.pid}/map_files").glob(_area(container))))
    assert os.path.samestat(held, os.stat(here))


def _area(container: Container) -> str:
    """The address range, as /proc/PID/map_files names it, where the workload has the driver's file mapped."""
    for line in container.node.path(f"/proc/{container.pid}/maps").read_text().splitlines():
        if line.endswith(DRIVER):
            return "-".join(part.lstrip("0") for part in line.split()[0].split("-"))
    raise AssertionError(f"{DRIVER} is not mapped")


@pytest.mark.parametrize("there", ["a", "b"])
def test_to_the_other_node_and_back(testbed: Testbed, there: str) -> None:
    """Both directions, and a second generation: what was restored is dumped again and goes home."""
    source, target = (testbed.a, testbed.b) if there == "a" else (testbed.b, testbed.a)
    name = f"travel-{there}"
    container = source.start(name, env=MEMORY)
    try:
        before = container.ask()
        well(before)
        covered = masks(container)
        move(container, name, target)
        container = restored(target, f"{name}-2", name)
        after = container.ask()
        well(after, before)
        is_of(container)
        assert masks(container) == covered
        assert container.exec("cat", "/data/lower/changed").endswith("changed here\n")
        container.checkpoint(f"{base(name)}/again/{name}/checkpoint")
        container.delete()
        source.run(["rm", "-rf", base(name)])
        target.push(f"{base(name)}/again", source, base(name))
        container = restored(source, f"{name}-3", name)
        well(container.ask(), after)
        is_of(container)
    finally:
        container.delete()
    nothing_remains(source, name)
    assert source.leaks() == [] == target.leaks()


@pytest.mark.parametrize("there", ["a", "b"])
def test_leave_running(testbed: Testbed, there: str) -> None:
    """The original goes on as if nothing had been, and the copy goes on elsewhere at the same time."""
    source, target = (testbed.a, testbed.b) if there == "a" else (testbed.b, testbed.a)
    name = f"stay-{there}"
    container = source.start(name, env=SMALL)
    copy = None
    try:
        before = container.ask()
        for node in (source, target):
            node.run(["rm", "-rf", base(name)])
        container.checkpoint(images(name), leave_running=True)
        well(container.ask(), before)
        source.push(base(name), target, base(name))
        copy = restored(target, f"{name}-copy", name)
        well(copy.ask(), before)
        well(container.ask(), before)
        nothing_remains(source, name, lives=True)
    finally:
        container.delete()
        if copy:
            copy.delete()
    assert source.leaks() == [] == target.leaks()


@pytest.mark.parametrize("low", ["runc", "crun"])
def test_in_place(node: Node, low: str) -> None:
    """Under its own name on its own node; crun wants a node with cgroup version 2 alone."""
    if low == "crun" and node.recipe.cgroups != "unified":
        return
    name = f"place-{low}"
    with low_level(node, runtime=f"/usr/bin/{low}"):
        container = node.start(name, env=SMALL)
        try:
            before = container.ask()
            covered = masks(container)
            # A second dump goes into the same folder, and nothing of the first may be taken for a part of it.
            container.checkpoint(images(name), leave_running=True)
            extra = node.path(f"{images(name)}/pagemap-shmem-9999.img")
            extra.write_bytes(node.path(f"{images(name)}/pagemap-1.img").read_bytes())
            container.checkpoint(images(name))
            # crun has deleted its state of what it dumped; containerd deletes the task all the same
            container.delete()
            assert container.status() == (0, "")
            container = restored(node, name, name)
            well(container.ask(), before)
            is_of(container)
            assert masks(container) == covered
        finally:
            container.delete()
    assert node.leaks() == []


# by hand: create, start, state, kill, delete and restore on a bundle


def shm_from_host(spec: Spec) -> None:
    """/dev/shm as a pod's: a bind of a folder that isn't the container's own."""
    for mount in spec["mounts"]:
        if mount["destination"] == "/dev/shm":
            mount.update(type="bind", source="/run/pod-shm", options=["rbind", "rw"])


def count(one: Bundle) -> int:
    """The last number that the counter wrote; the rootfs is looked at from outside."""
    lines = one.node.path(f"{one.path}/rootfs/data/upper/counter").read_text().splitlines()
    return int(lines[-1])


def test_restore_by_hand(node: Node) -> None:
    """`restore --detach` on a bundle, with /dev/shm that is a pod's: what lies there goes along."""
    node.run(["mkdir", "-p", "/run/pod-shm"])
    model = node.start("hand-model", env=SMALL)
    try:
        with bundle(node, "hand", model, shm_from_host) as one:
            one.create()
            one.call("start", one.id)
            one.wait_ready()
            before = one.ask()
            well(before)
            node.write("/run/pod-shm/segment", "in the pod's shared memory")
            one.call("checkpoint", "--image-path", images("hand"), "--work-path", f"{one.path}/dump", one.id)
            one.call("delete", "--force", one.id)
            node.run(["rm", "-r", "/run/pod-shm"])
            node.run(["mkdir", "/run/pod-shm"])
            node.write("/run/pod-shm/theirs", "of another container")
            one.renew()
            one.restore(images("hand"))
            assert one.status() == "running"
            well(one.ask(), before)
            assert node.path("/run/pod-shm/segment").read_text() == "in the pod's shared memory"
            assert node.path("/run/pod-shm/theirs").read_text() == "of another container"
            one.call("delete", "--force", one.id)
            nothing_remains_but_model(one, model)
    finally:
        model.delete()
        node.run(["rm", "-rf", "/run/pod-shm", base("hand")])
    assert node.leaks() == []


@pytest.mark.parametrize("low", ["runc", "crun"])
def test_nothing_runs_before_start(node: Node, low: str) -> None:
    """A container that was restored on `create` is created: it stands still, can be killed and deleted, or started."""
    if low == "crun" and node.recipe.cgroups != "unified":
        return
    with low_level(node, runtime=f"/usr/bin/{low}"):
        model = node.start("held-model", env=SMALL)
        try:
            before = model.ask()
            model.checkpoint(images("held"), leave_running=True)

            def wish(spec: Spec) -> None:
                spec.setdefault("annotations", {}).update(annotation("held"))

            with bundle(node, "held", model, wish) as one:
                for way in ("kill", "delete", "start"):
                    one.create()
                    stood = count(one)
                    watches = one.node.path(f"/proc/{one.pid}/fdinfo")
                    assert one.status() == "created"
                    assert sum("inotify wd:" in path.read_text() for path in watches.iterdir()) == 1
                    # time passes: CRIU, the stages and two calls took longer than ten ticks of the counter
                    assert one.call("kill", one.id, "TERM", check=False).returncode == 0 if way == "kill" else True
                    assert "container-held" in one.call("resume", one.id, check=False).stderr
                    assert one.status() == "created"
                    assert count(one) == stood
                    if way == "kill":
                        one.call("kill", one.id, "KILL")
                        until("its end", lambda: not _alive(one), 30)
                        assert count(one) == stood
                        one.call("delete", one.id)
                    elif way == "delete":
                        one.call("delete", "--force", one.id)
                        assert not _alive(one) and count(one) == stood
                    else:
                        one.call("start", one.id)
                        assert one.status() == "running"
                        well(one.ask(), before)
                        one.call("delete", "--force", one.id)
                    nothing_remains_but_model(one, model)
                    if way != "start":
                        one.renew()
        finally:
            model.delete()
            node.run(["rm", "-rf", base("held")])
    assert node.leaks() == []


def nothing_remains_but_model(one: Bundle, model: Container) -> None:
    nothing_remains(one.node, one.id, but=model.pid)


def _alive(one: Bundle) -> bool:
    try:
        state = one.node.path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_live_mounts_and_kernel_facts(testbed: Testbed) -> None:
    """The new container's own binds, host name and bounds apply, whatever the images hold."""
    name = "others"
    container = testbed.a.start(name, env=SMALL)
    try:
        before = container.ask()
        move(container, name, testbed.b)
        testbed.b.write("/srv/other-hosts", "192.0.2.9 elsewhere\n")
        options = ["--hostname", "new-name"]
        container = restored(testbed.b, f"{name}-2", name, options=options)
        after = container.ask()
        well(after, before)
        assert after["hostname"] == "new-name"
        spec = spec_of(container)
        assert spec["hostname"] == "new-name"
        kept = record(testbed.b, f"{name}-2")
        assert kept["result"] == "ok" and kept["operation"] == "restore"
        # a bind that is written to from outside is seen inside: it is this node's file
        pod = f"{testbed.b.recipe.kubelet}/pods/{name}-2"
        testbed.b.write(f"{pod}/termination-log", "from outside", 0o666)
        assert container.path("/dev/termination-log").read_text() == "from outside"
    finally:
        container.delete()
    assert testbed.b.leaks() == []
