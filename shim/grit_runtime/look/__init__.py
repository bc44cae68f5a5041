"""What the processes of a container hold, found in one walk of /proc, and what follows from it for a checkpoint.

`look` only reads and needs root; `needs` and `findings` are pure.
"""

from __future__ import annotations

from grit_runtime.look.facts import Look
from grit_runtime.look.judging import Finding, findings, refuse_what_fails
from grit_runtime.look.needing import Needs, needs
from grit_runtime.look.walk import look

__all__ = ["Finding", "Look", "Needs", "findings", "look", "needs", "refuse_what_fails"]
