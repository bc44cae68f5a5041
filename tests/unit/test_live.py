"""What the live spec says."""

import os
from typing import Any

from grit_runtime import live


def test_namespaces_are_own_joined_or_the_hosts() -> None:
    known = live.namespaces(
        {
            "linux": {
                "namespaces": [
                    {"type": "mount"},
                    {"type": "ipc", "path": "/proc/0/ns/ipc"},
                    {"type": "pid", "path": ""},
                ]
            }
        }
    )
    assert known.own("mount")
    assert known.own("pid")
    assert not known.own("ipc")
    assert known.joined("ipc")
    assert not known.own("network")
    assert not known.joined("network")


def test_a_namespace_of_the_node_is_none_to_join() -> None:
    own = {"type": "network", "path": f"/proc/{os.getpid()}/ns/net"}
    linux: dict[str, Any] = {
        "namespaces": [own, {"type": "uts"}, {"type": "ipc", "path": "/no/such"}],
        "maskedPaths": ["/x"],
    }
    known = live.namespaces({"linux": linux})
    assert known.paths == {"uts": "", "ipc": "/no/such"} and not known.joined("network")
    left = live.without_nodes_namespaces({"hostname": "x", "linux": linux})
    assert left["linux"]["maskedPaths"] == ["/x"] and left["hostname"] == "x" and own in linux["namespaces"]


def test_hostname_of_an_own_namespace_is_the_specs() -> None:
    spec = {"hostname": "new", "linux": {"namespaces": [{"type": "uts"}]}}
    assert live.hostname(spec) == "new"
    assert live.hostname({**spec, "hostname": ""}) == os.uname().nodename
    assert live.hostname({"hostname": "new"}) is None


def test_a_pods_own_criu_configuration_is_dropped() -> None:
    spec = live.with_criu_config({"annotations": {"org.criu.config": "/pods/own", "a": "b"}})
    assert spec["annotations"] == {"org.criu.config": live.STATIC, "a": "b"}
    assert live.with_criu_config({})["annotations"] == {"org.criu.config": live.STATIC}


def test_devices_that_are_binds_are_not_made() -> None:
    spec = {
        "linux": {
            "devices": [{"path": "/dev/a", "type": "c"}, {"path": "/dev/b", "type": "c"}, {"path": "/p", "type": "p"}]
        },
        "mounts": [{"destination": "/dev/b", "type": "bind"}],
    }
    assert [entry["path"] for entry in live.wanted_devices(spec)] == ["/dev/a"]
