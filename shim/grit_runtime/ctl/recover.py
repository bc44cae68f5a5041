"""gritctl recover: what operations left behind that died together with their guardians."""

from __future__ import annotations

import json
import os
import time

import click

from grit_runtime import journal, process
from grit_runtime.checks import refuse
from grit_runtime.ctl import table
from grit_runtime.cuda import hugepages

SETTLE = 0.5  # s; an operation that begins has a folder some milliseconds before it has an owner


@click.command()
@click.option("--dry-run", is_flag=True, help="List what would be undone, and undo nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(dry_run: bool, as_json: bool) -> None:
    """Undo what an operation that died has left behind.

    An operation undoes its steps itself when it fails, and a guardian does when it is killed. Only when the guardian
    was killed too is something left for this command. Exits with 1 if a step could not be undone; it stays on record.
    """
    found = [_recover(folder, dry_run) for folder in dead_operations()]
    found += [_release(path, dry_run) for path in dead_markers()]
    found += _huge_pages(dry_run)
    bad = sum(bool(operation["problems"]) for operation in found)
    if as_json:
        table.show_json("recover", {"operations": found})
    elif not found:
        table.show(["Nothing to recover."])
    else:
        table.show(table.table([_row(operation, dry_run) for operation in found], ("operation", "", "steps")))
    if bad:
        raise refuse("recover-failed", count=bad)


def dead_operations() -> list[str]:
    """Folders of operations that nobody works on."""
    first = journal.pending()
    if first:
        time.sleep(SETTLE)
    return [folder for folder in journal.pending() if folder in first]


def dead_markers() -> list[str]:
    """Markers of containers that waited for their start and whose first process is gone."""
    folder = f"{journal.RUN}/held"
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        try:
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                facts = json.load(file)
            if process.started(int(facts["pid"])) != facts["started"]:
                found.append(f"{folder}/{name}")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is being written or removed
    return found


def _release(path: str, dry_run: bool) -> dict[str, object]:
    """Remove a marker; as _recover."""
    problems = []
    try:
        if not dry_run:
            os.unlink(path)
    except OSError as error:
        problems.append(str(error))
    return {"operation": os.path.basename(path), "folder": path, "steps": ["release"], "problems": problems}


def _huge_pages(dry_run: bool) -> list[dict[str, object]]:
    """Put the node's setting of huge pages back that the operations would have; as _recover."""
    before = hugepages.owed()
    if not before:
        return []
    if not dry_run:
        hugepages.sweep()
    problems = [] if dry_run or not hugepages.owed() else [f"{hugepages.SETTING} could not be set to {before}"]
    return [{"operation": "huge-pages", "folder": hugepages.STATE, "steps": ["huge-pages"], "problems": problems}]


def _recover(folder: str, dry_run: bool) -> dict[str, object]:
    """Undo one operation; its name, the steps that were open (newest first), and what went wrong."""
    try:
        steps = [name for _, name, _ in journal.open_steps(folder)]
        problems = [] if dry_run else journal.undo(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        steps, problems = [], [f"the journal can't be read: {error}"]
    return {"operation": os.path.basename(folder), "folder": folder, "steps": steps, "problems": problems}


def _row(operation: dict[str, object], dry_run: bool) -> tuple[table.Text, ...]:
    problems, steps = operation["problems"], operation["steps"]
    assert isinstance(problems, list) and isinstance(steps, list)
    word = table.Cell("failed", "red") if problems else table.Cell("to undo" if dry_run else "undone", "green")
    text = "; ".join(problems) if problems else ", ".join(steps) or "files only"
    return str(operation["operation"]), word, text
