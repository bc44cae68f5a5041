"""Both nodes together: up, down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from . import build, groups, images, runs
from .node import Node
from .recipe import NODE_A, NODE_B


class Testbed:
    """Two nodes, `a` and `b`, up while it is entered. Builds the trees and the images when they are not cached."""

    __test__ = False  # pytest: no test class

    def __init__(self, deb: Path | None = None) -> None:
        self.deb = deb
        self._entered: list[Node] = []

    def __enter__(self) -> Testbed:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Brings both nodes up with containerd, the images, the link between them, and the .deb if one was given."""
        runs.clean_dead()
        trees = build.build()
        folder = images.build(trees[NODE_A.name])
        self.run = runs.Run()
        try:
            self.a, self.b = (Node(recipe, self.run, trees[recipe.name], folder) for recipe in (NODE_A, NODE_B))
            for node in self.nodes:
                self._entered.append(node)
                node.enter()
            for node in self.nodes:
                node.wait()
            from . import network

            network.join(self.a, self.b)
            at_once([lambda node=node: self._finish(node) for node in self.nodes])  # type: ignore[misc]
        except BaseException:
            self.down()
            raise

    def _finish(self, node: Node) -> None:
        node.prepare()
        if self.deb:
            node.install(self.deb)
        node.wait_containerd()
        for archive in images.ARCHIVES:
            for namespace in ("default", "k8s.io"):
                node.ctr("-n", namespace, "images", "import", f"/srv/{archive}", timeout=120)

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.a, self.b

    @property
    def tag(self) -> str:
        return self.run.tag

    def down(self) -> None:
        """Ends both nodes; nothing of the run is left when it returns (RuntimeError if something is)."""
        self.run.end()
        for node in self._entered:
            node.reap()

    def leaks(self) -> list[str]:
        """What the run left on this machine: [] after `down`."""
        return runs.leaks(self.tag)

    def members(self) -> set[int]:
        """All processes of the nodes, as this machine sees them."""
        return groups.members([group for node in self.nodes for group in groups.groups(node.group)])


def at_once(works: list[Callable[[], None]]) -> None:
    """Runs these at the same time; the first error is raised when all have ended."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
