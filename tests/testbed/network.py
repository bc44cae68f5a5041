"""The link between the nodes: a pair of veth devices that never appears in this machine's own network namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyroute2 import IPRoute

if TYPE_CHECKING:
    from .node import Node

NAME = "eth0"


def join(one: Node, other: Node) -> None:
    """Puts one end into each node, and gives them the nodes' addresses. It goes when one of them goes."""
    peer = {"ifname": NAME, "net_ns_pid": other.pid}
    with IPRoute() as routes:
        routes.link("add", ifname=NAME, kind="veth", net_ns_pid=one.pid, peer=peer)
    for node, far in ((one, other), (other, one)):
        node.run(["ip", "addr", "add", node.recipe.address, "dev", NAME])
        node.run(["ip", "link", "set", NAME, "up"])
        node.run(["ip", "route", "add", far.recipe.pods, "via", far.recipe.address.split("/")[0]])
