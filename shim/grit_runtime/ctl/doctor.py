"""gritctl doctor: whether this node can checkpoint and restore, and what to do if it can't."""

from __future__ import annotations

import click

from grit_runtime.ctl import BAD, OK, UNKNOWN, table
from grit_runtime.ctl.facts import gather
from grit_runtime.ctl.rows import Row, rows


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say whether this node is ready.

    Looks at the chain of runtimes, containerd and what else starts containers, CRIU, the kernel, the NVIDIA driver and
    toolkit, folders, and what operations have left behind. Changes nothing. Exits with 0 if nothing is bad, 1 if
    something is, 2 if something could not be seen.
    """
    found = rows(gather())
    if as_json:
        table.show_json("doctor", {"ready": verdict(found) == OK, "rows": [row._asdict() for row in found]})
    else:
        table.show(screen(found))
    ctx.exit(verdict(found))


def verdict(found: list[Row]) -> int:
    """The exit code: warnings don't stop anybody."""
    levels = {row.level for row in found}
    return BAD if "bad" in levels else UNKNOWN if "unknown" in levels else OK


def screen(found: list[Row]) -> list[str]:
    """The rows as a person reads them, the remedy below what needs one."""
    lines: list[tuple[table.Text, table.Text, table.Text]] = []
    for row in found:
        lines.append((row.check, table.mark(row.level), f"{row.reason}: {row.text}" if row.reason else row.text))
        if row.remedy:
            lines.append(("", "", table.Cell(table.sentence(row.remedy), "dim")))
    words = {OK: ("This node is ready.", "green"), BAD: ("This node is not ready.", "red")}
    text, colour = words.get(verdict(found), ("Not everything could be seen.", "yellow"))
    return [*table.table(lines), "", table.paint(text, colour)]
