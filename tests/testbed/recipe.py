"""What the two nodes are: pure values. Whatever changes here (or in build.py) gives the cached trees another name."""

from __future__ import annotations

from typing import NamedTuple


class Recipe(NamedTuple):
    """One node. `later` are packages taken from Debian testing, which the tree pins at 100."""

    name: str
    suite: str
    packages: tuple[str, ...]
    later: tuple[str, ...]
    #: "hybrid" is cgroup v1 with v2 at unified/, "unified" is v2 alone
    cgroups: str
    address: str
    #: the pods' network: bridge and address range of the CNI plugin
    pods: str
    #: where the driver's files lie on this node, and the kubelet's folder
    driver: str
    kubelet: str
    #: parent of the containers' cgroups
    cgroup_parent: str
    #: character devices of the fake driver: name -> (major, minor); harmless numbers of the kernel's own "mem" driver
    devices: tuple[tuple[str, int, int], ...]


COMMON = (
    "containerd runc crun podman conmon netavark catatonit containernetworking-plugins iptables nftables iproute2 "
    "procps ca-certificates python3 python3-click python3-tomlkit python3-pyroute2 python3-prctl busybox-static"
)

NODE_A = Recipe(
    name="node-a",
    suite="trixie",
    packages=tuple(COMMON.split()),
    # testing's CRIU: the 4.1.1 of Debian 13 cannot dump sockets on a kernel from 6.16 on
    later=("criu",),
    cgroups="hybrid",
    address="10.88.7.2/24",
    pods="10.90.1.0/24",
    driver="/usr/lib/x86_64-linux-gnu/nvidia/current",
    kubelet="/var/lib/kubelet",
    cgroup_parent="/kubepods/burstable",
    devices=(("nvidia0", 1, 3), ("nvidiactl", 1, 5), ("nvidia-uvm", 1, 7), ("nvidia-uvm-tools", 1, 8)),
)

NODE_B = Recipe(
    name="node-b",
    suite="forky",
    packages=(*COMMON.split(), "criu", "libcriu2"),
    later=(),
    cgroups="unified",
    address="10.88.7.3/24",
    pods="10.90.2.0/24",
    driver="/opt/nvidia/driver/usr/lib64",
    kubelet="/data/kubelet",
    cgroup_parent="/kubepods.slice/kubepods-besteffort.slice",
    devices=(("nvidia0", 1, 5), ("nvidiactl", 1, 3), ("nvidia-uvm", 1, 9), ("nvidia-uvm-tools", 1, 7)),
)

RECIPES = (NODE_A, NODE_B)

#: the suite that `later` is taken from
TESTING = "forky"
