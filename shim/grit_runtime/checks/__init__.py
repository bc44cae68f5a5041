"""The reasons why something is refused: one table, used by every command of grit-runtime and gritctl.

Each area keeps its own part of the table in `reasons_AREA.py`, a dict `REASONS` from the reason's stable name to a
`Reason`. A message exists once, there; code names it and gives the facts: `raise refuse("image-truncated", path=path)`.
The table is read only when something is refused, so a call that goes well loads none of it.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Reason(NamedTuple):
    """One row: `text` says what is wrong with which object, `remedy` what to do; both are str.format templates."""

    text: str
    remedy: str


class Refusal(Exception):
    """Something is refused. `reason` is the stable name, `message` and `remedy` are one line each."""

    def __init__(self, reason: str, message: str, remedy: str) -> None:
        super().__init__(reason, message, remedy)
        self.reason, self.message, self.remedy = reason, message, remedy

    def __str__(self) -> str:
        return f"grit-runtime: {self.reason}: {self.message}. {self.remedy.removesuffix('.')}."


def _line(value: object) -> object:
    """Facts come from pods and images: keep a message one printable line, whatever they hold."""
    if isinstance(value, int):
        return value
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= 400 else text[:400] + "..."


def refuse(reason: str, **facts: object) -> Refusal:
    """The Refusal for `reason`, its templates filled with `facts`. KeyError if no table has it: a mistake of ours."""
    row = table()[reason]
    clean = {name: _line(value) for name, value in facts.items()}
    return Refusal(reason, row.text.format(**clean), row.remedy.format(**clean))


def table() -> dict[str, Reason]:
    """All rows of all areas, by name. No name stands in two areas: a test sees to that; refusing itself can't fail."""
    rows: dict[str, Reason] = {}
    for part in areas().values():
        rows.update(part)
    return rows


def areas() -> dict[str, dict[str, Reason]]:
    """The table's parts by the name of their module."""
    from importlib import import_module

    names = (name[:-3] for name in sorted(os.listdir(os.path.dirname(__file__))))
    return {name: import_module(f"{__name__}.{name}").REASONS for name in names if name.startswith("reasons_")}
