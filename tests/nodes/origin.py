"""One checkpoint of a small container, copies of it to edit, bundles to restore them in: for what must be refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.nodes.moving import SMALL, Bundle, Spec, bundle, images, nothing_remains, reason, record
from tests.testbed import Container, Node

PARTS = "child,watches,counter,files,driver"
EXTRA = "/srv/extra"


class Origin:
    """A container that lives on, with a bind of its own at /extra, and its checkpoint. `copies` are numbered."""

    def __init__(self, node: Node, id: str) -> None:
        self.node, self.id, self.copies, self._numbers = node, id, 0, count()
        node.path(EXTRA).mkdir(parents=True, exist_ok=True)
        options = ["--mount", f"type=bind,src={EXTRA},dst=/extra,options=rbind:ro"]
        self.container: Container = node.start(id, env={**SMALL, "GRIT_PARTS": PARTS}, options=options)
        self.container.checkpoint(images(id), leave_running=True)

    def close(self) -> None:
        self.container.delete()
        self.node.run(["sh", "-c", f"rm -rf {EXTRA} /var/lib/grit/{self.id}*"])

    def copy(self) -> Copy:
        self.copies += 1
        base = f"/var/lib/grit/{self.id}-{self.copies}"
        self.node.run(["cp", "-a", f"/var/lib/grit/{self.id}/{self.id}", base])
        return Copy(self.node, base)

    @contextmanager
    def bundle(self, edit: Callable[[Spec], None] = lambda spec: None) -> Iterator[Bundle]:
        with bundle(self.node, f"{self.id}-new{next(self._numbers)}", self.container, edit) as one:
            yield one

    def refused(self, one: Bundle, folder: str, *, annotated: bool = False) -> str:
        """The reason why `restore` of `folder` (or `create`, if the bundle's spec names it) is refused; nothing was
        started and nothing is left."""
        spec = self.node.path(f"{one.path}/config.json").read_text()
        done = one.create(check=False) if annotated else one.restore(folder, check=False)
        assert done.returncode == 1, done.stderr
        name = reason(done.stderr)
        kept = record(self.node, one.id)
        assert (kept["result"], kept["reason"], kept["logs"]) == ("refused", name, []), (kept, done.stderr)
        assert "criu" not in kept["phases"]
        assert not self.node.path(f"{one.path}/work-path/restore.log").exists()
        assert self.node.path(f"{one.path}/config.json").read_text() == spec
        nothing_remains(self.node, one.id, but=self.container.pid)
        return name


class Copy:
    """A checkpoint that a test may edit: `base` is the container's folder, on the node."""

    def __init__(self, node: Node, base: str) -> None:
        self.node, self.base, self.images = node, base, f"{base}/checkpoint"

    def path(self, name: str) -> Path:
        return self.node.path(f"{self.images}/{name}")

    def find(self, pattern: str) -> Path:
        return next(iter(sorted(self.node.path(self.images).glob(pattern))))

    def manifest(self, edit: Callable[[dict[str, Any]], object]) -> None:
        place = self.path("grit.json")
        content = json.loads(place.read_text())
        edit(content)
        place.write_text(json.dumps(content))

    def agree(self) -> None:
        """The manifest names the files as they now are."""

        def sizes(content: dict[str, Any]) -> None:
            for name, facts in content["files"].items():
                if self.path(name).is_file():
                    facts["size"] = os.lstat(self.path(name)).st_size

        self.manifest(sizes)
