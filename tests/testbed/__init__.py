"""Two real nodes on one machine: `with Testbed() as bed: bed.a.start("one")`. See `python -m tests.testbed --help`."""

from __future__ import annotations

from .bed import Testbed
from .container import Container, ask, ready
from .node import CommandFailed, Node, until

__all__ = ["CommandFailed", "Container", "Node", "Testbed", "ask", "ready", "until"]
