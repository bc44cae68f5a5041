"""grit-runtime pause: a container that was restored on `create` stands still already, and the next runtime says so."""

from __future__ import annotations

from grit_runtime import chain
from grit_runtime.argv import Call
from grit_runtime.settings import Settings


def run(call: Call, settings: Settings) -> int:
    """Always the next runtime's."""
    chain.execute(chain.next_runtime(settings), call.rebuilt())
