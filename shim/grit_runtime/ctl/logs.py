"""gritctl logs: the logs and records of the last checkpoints and restores, which containerd throws away."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator

import click

from grit_runtime import records
from grit_runtime.checks import refuse
from grit_runtime.ctl import table

RESULTS = {"ok": "green", "refused": "yellow", "failed": "red"}


@click.command()
@click.argument("container", default="", required=False)
@click.option("-n", "--number", type=click.IntRange(min=1), help="Which operation to print, 1 being the newest [1].")
@click.option("--list", "only_list", is_flag=True, help="List the container's operations instead of printing one.")
@click.option("--path", "only_path", is_flag=True, help="Print where the operation's files are, and no more.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as one JSON object.")
def command(container: str, number: int | None, only_list: bool, only_path: bool, as_json: bool) -> None:
    """List or print the kept logs of checkpoints and restores.

    Without CONTAINER (an id, or its beginning) all operations are listed, the newest first. With it, the record of its
    newest operation is printed, and CRIU's log.
    """
    found = records.listing(container)
    if container:
        exact = [kept for kept in found if kept.container == records.safe_name(container)]
        found = exact or found
        if not found:
            raise refuse("logs-unknown", id=container)
    if number is not None or only_path:
        if not 0 < (number or 1) <= len(found):
            raise refuse("logs-number", number=number or 1, count=len(found))
        found = found[(number or 1) - 1 :][:1]
    if only_path:
        table.show([found[0].folder])
    elif as_json:
        table.show_json("logs", {"operations": [to_json(kept) for kept in found]})
    elif container and not only_list:
        for line in print_one(found[0]):
            table.show([line])
    else:
        table.show(listed(found) or ["Nothing is kept."])


def listed(found: list[records.Kept]) -> list[str]:
    """One line for each operation."""
    rows: list[list[table.Text]] = []
    for kept in found:
        record = kept.record()
        result = str(record.get("result", "?"))
        seconds = record.get("seconds")
        rows.append(
            [
                when(kept.when),
                short(kept.container),
                kept.operation,
                table.Cell(result, RESULTS.get(result, "")),
                f"{seconds:.1f} s" if isinstance(seconds, (int, float)) else "",
                str(record.get("reason", "")),
            ]
        )
    return table.table(rows, ("when", "container", "what", "result", "took", "reason"), right=[4]) if rows else []


def short(container: str) -> str:
    """An id of 64 hexadecimal digits as everybody shortens them, to 12; any other as it is."""
    return container[:12] if re.fullmatch(r"[0-9a-f]{64}", container) else container


def print_one(kept: records.Kept) -> Iterator[str]:
    """The record of an operation, then its logs."""
    record = kept.record()
    rows = [("when", when(kept.when)), ("container", kept.container), ("operation", kept.operation)]
    for name, value in record.items():
        if name in ("container", "operation", "started") or value in ("", [], {}):
            continue
        if name in ("phases", "bytes") and isinstance(value, dict):
            shown = [f"{key} {_amount(name, amount)}" for key, amount in value.items()]
            rows.append((name, ", ".join(shown)))
        elif isinstance(value, list):
            rows.append((name, "; ".join(map(str, value))))
        else:
            rows.append((name, f"{value:.3f}" if isinstance(value, float) else str(value)))
    yield from table.table(rows)
    for path in kept.logs():
        yield from ("", table.paint(path, "bold"))
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    yield _line(line.rstrip("\n"))
        except OSError as error:
            yield table.visible(error)


def to_json(kept: records.Kept) -> dict[str, object]:
    """An operation: where its files are, and its record."""
    return {**kept._asdict(), "logs": kept.logs(), "record": kept.record()}


def when(stamp: str) -> str:
    """20261125T184501.123456Z in this machine's time: 2026-11-25 18:45:01."""
    try:
        seconds = calendar.timegm(time.strptime(stamp.partition(".")[0], "%Y%m%dT%H%M%S"))
    except ValueError:
        return stamp
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _amount(name: str, amount: object) -> str:
    if not isinstance(amount, (int, float)):
        return str(amount)
    return f"{amount:.3f} s" if name == "phases" else table.size(amount)


def _line(line: str) -> str:
    """A line of CRIU's log; errors and warnings stand out."""
    colour = "red" if re.search(r"\bError\s*\(", line) else "yellow" if re.search(r"\bWarn\s*\(", line) else ""
    return table.paint(table.visible(line).replace("\\t", "    "), colour)
