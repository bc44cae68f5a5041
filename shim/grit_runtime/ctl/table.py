"""What gritctl prints: aligned tables and trees no wider than the terminal, colour on a terminal only, JSON.

Text that comes from containers, images and logs goes through `visible` here, so that it can't drive the terminal.
All functions that lay out return lines; `show` prints them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

COLOURS = {"green": "32", "yellow": "33", "red": "31", "cyan": "36", "dim": "2", "bold": "1"}
MARKS = {"ok": "green", "warn": "yellow", "bad": "red", "info": "cyan", "unknown": "yellow"}
NARROWEST = 12  # a column that wraps is not made narrower than this


class Cell(NamedTuple):
    """A piece of text with one of COLOURS ('' for none). Where a cell is wanted, a plain str does too."""

    text: str
    colour: str = ""


class Branch(NamedTuple):
    """A line of a tree and what hangs from it."""

    cell: Text
    children: Sequence[Branch] = ()


Text = str | Cell


def mark(level: str) -> Cell:
    """The word for a row's level ('ok', 'warn', 'bad', 'info' or 'unknown') in its colour."""
    return Cell(level, MARKS[level])


def visible(text: object) -> str:
    """`text` on one line, with each character that isn't printable as an escape: \\n, \\x1b, \\u202e, \\udc80."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def width() -> int:
    """Columns of the terminal; 80 when stdout is none."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80


def colourful() -> bool:
    """Colour only on a terminal that can, and only where NO_COLOR (no-color.org) isn't set to something."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def cells(text: str) -> int:
    """Columns that `text`, which has no control characters, takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, columns: int) -> str:
    """The longest beginning of `text` that fits, at least one character; of a path, up to a slash if that isn't far."""
    used = 0
    for index, character in enumerate(text):
        used += cells(character)
        if used > columns:
            slash = text.rfind("/", 0, index) + 1
            return text[: slash if slash > index // 2 else max(index, 1)]
    return text


def wrap(text: str, columns: int) -> list[str]:
    """`text` in lines of at most `columns`: broken at spaces, in a word only where the word alone is too long."""
    if cells(text) <= columns:
        return [text]
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if cells(joined) <= columns:
            line = joined
            continue
        if line:
            lines.append(line)
        while cells(word) > columns:
            part = cut(word, columns)
            lines.append(part)
            word = word[len(part) :]
        line = word
    return [*lines, line.rstrip()]


def paint(text: str, colour: str, on: bool | None = None) -> str:
    """`text` in a colour, if colour is `on` (default: `colourful()`)."""
    wanted = colourful() if on is None else on
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if colour and wanted else text


def table(
    rows: Iterable[Sequence[Text]],
    heads: Sequence[str] = (),
    *,
    columns: int | None = None,
    indent: int = 0,
    right: Iterable[int] = (),
    colour: bool | None = None,
) -> list[str]:
    """Aligned lines for `rows` of equal length, two spaces apart, at most `columns` wide (default: the terminal).

    The widest columns give way first and wrap. `right`: numbers of the columns that are flush right. Control
    characters are made visible. The lines carry colour as `paint` does.
    """
    body = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    if heads:
        body.insert(0, [Cell(head, "bold") for head in heads])
    if not body:
        return []
    body = [[Cell(visible(cell.text), cell.colour) for cell in row] for row in body]
    wanted = [max(cells(row[i].text) for row in body) for i in range(len(body[0]))]
    widths = _fit(wanted, (columns or width()) - indent - 2 * (len(wanted) - 1))
    flush = set(right)
    lines = []
    for row in body:
        parts = [wrap(cell.text, widths[i]) for i, cell in enumerate(row)]
        for number in range(max(len(part) for part in parts)):
            line = " " * indent
            gap = ""
            for i, part in enumerate(parts):
                text = part[number] if number < len(part) else ""
                pad = " " * (widths[i] - cells(text))
                if text:
                    line += gap + (pad if i in flush else "") + paint(text, row[i].colour, colour)
                    gap = "  " + ("" if i in flush else pad)
                else:
                    gap += pad + "  "
            lines.append(line)
    return lines


def _fit(wanted: list[int], room: int) -> list[int]:
    """Widths for columns that want `wanted`, the widest narrowed first until the sum fits in `room`."""
    widths = [min(w, max(room, NARROWEST)) for w in wanted]
    while sum(widths) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def tree(branch: Branch, *, columns: int | None = None, colour: bool | None = None) -> list[str]:
    """Lines of a tree, drawn with lines where stdout's encoding has them and in ASCII else; long lines wrap."""
    fancy = "utf" in (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    strokes = ("├─ ", "└─ ", "│  ", "   ") if fancy else ("|- ", "`- ", "|  ", "   ")
    lines: list[str] = []
    room = columns or width()

    def draw(node: Branch, first: str, rest: str) -> None:
        cell = node.cell if isinstance(node.cell, Cell) else Cell(node.cell)
        hang = rest + (strokes[2] if node.children else "  ")
        parts = wrap(visible(cell.text), max(room - max(len(first), len(hang)), NARROWEST))
        lines.extend((hang if i else first) + paint(part, cell.colour, colour) for i, part in enumerate(parts))
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            draw(child, rest + strokes[last], rest + strokes[2 + last])

    draw(branch, "", "")
    return lines


def sentence(text: str) -> str:
    """`text`, a remedy from the table of reasons, as a sentence: a capital at its beginning, a full stop at its end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def size(count: float) -> str:
    """A number of bytes for people: 0 B, 12 KiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show(lines: Iterable[str]) -> None:
    """Print lines of this module. Nothing is stripped from them: they carry colour only where it is wanted."""
    click.echo("\n".join(lines), color=True)


def show_json(kind: str, value: dict[str, Any], version: int = 1) -> None:
    """One JSON object on stdout: `kind` names the command, `version` rises when a field changes its meaning or goes.

    ASCII only, so that names that are no UTF-8 (surrogates) and control characters arrive as escapes.
    """
    click.echo(json.dumps({"kind": kind, "version": version, **value}, indent=2, default=str))
