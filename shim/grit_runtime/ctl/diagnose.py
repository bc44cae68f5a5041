"""gritctl diagnose: why a checkpoint or a restore failed, out of CRIU's log and the images beside it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import click

from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import log as logs
from grit_runtime.criu.complete import problems
from grit_runtime.criu.mountpoints import mounts
from grit_runtime.ctl import BAD, OK, UNKNOWN, checkpoints, table

SHOWN = 8  # lines of evidence
REPORT = "report them with the whole log, `criu --version`, `uname -r` and the container's spec"


class Diagnosis(NamedTuple):
    """What one log, or the images, say. `causes` are the known ones, the one that explains the failure first."""

    log: logs.Log | None
    causes: list[Refusal]
    evidence: list[logs.Line]

    @property
    def code(self) -> int:
        if self.causes:
            return BAD
        return UNKNOWN if self.evidence or (self.log and not self.log.finished) else OK


@click.command(context_settings={"show_default": True})
@click.argument("path")
@click.option("--images", default="", metavar="DIR", help="The log's image folder, if it isn't beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, path: str, images: str, as_json: bool) -> None:
    """Explain a failed checkpoint or restore.

    PATH is a log (dump.log, restore.log, or what the runtime wrote), an image folder, a checkpoint, a folder of kept
    logs, or the id of a container whose logs were kept. Exits with 1 when a cause was found, 0 when nothing failed, 2
    when the failure is not known.
    """
    with checkpoints.opened(path) as place:
        found = diagnose(place._replace(images=images or place.images))
    if as_json:
        table.show_json("diagnose", {"path": path, "logs": [to_json(one) for one in found]})
    else:
        for number, one in enumerate(found):
            table.show(([""] if number else []) + describe(one))
    ctx.exit(max((one.code for one in found), key=lambda code: (code == BAD, code)))


def diagnose(place: checkpoints.Place) -> list[Diagnosis]:
    """One diagnosis a log, the newest first; or one of the images alone where there is no log."""
    newest = sorted(place.logs, key=_age, reverse=True)
    if newest:
        return [of_log(path, place.images) for path in newest]
    found = list(problems(place.images)) if place.images else []
    return [Diagnosis(None, found, [])]


def of_log(path: str, images: str) -> Diagnosis:
    """What a log says; the mounts that it only numbers get their names from the images."""
    log = logs.read(path)
    known = logs.causes(log)
    if log.finished and not log.errors:
        known = [cause for cause in known if cause.reason in logs.WARNINGS]
    causes = [logs.explain(cause, **named(cause, images)) for cause in known]
    if not log.finished and not log.errors and not causes:
        causes = [refuse("log-cut", stage=log.stage or "none")]
    every = {logs.what(line): line for line in reversed(log.errors)}  # what CRIU says again and again, once
    every |= {logs.what(cause.line): cause.line for cause in known}
    lines = [cause.line for cause in known] + sorted(every.values(), key=lambda line: line.number)
    lines = list(dict.fromkeys(lines))
    return Diagnosis(log, causes, sorted(lines[:SHOWN], key=lambda line: line.number))


def named(cause: logs.Cause, images: str) -> dict[str, str]:
    """Facts out of the images: the mountpoint and the key of a mount that the log numbers (CRIU prints `(null)`)."""
    number = cause.facts.get("mount", "").partition(":")[0]
    if not images or not number.isdecimal():
        return {}
    try:
        found = [mount for mount in mounts(images) if mount.id == int(number)]
    except Refusal:
        return {}
    if not found:
        return {}
    mount = found[0]
    key = f", key {mount.key}" if mount.key not in ("", mount.mountpoint) else ""
    return {"place": f"{mount.mountpoint}{key}"}


def describe(one: Diagnosis) -> list[str]:
    """Lines for people."""
    rows: list[tuple[table.Text, table.Text]] = []
    lines: list[str] = []
    if one.log:
        lines += [table.paint(line, "bold") for line in table.wrap(heading(one.log), table.width())] + [""]
    for number, cause in enumerate(one.causes):
        rows.append((table.Cell("Cause" if number == 0 else "Also", "red" if number == 0 else "yellow"), cause.message))
        rows.append(("Reason", cause.reason))
        rows.append(("Remedy", table.Cell(cause.remedy, "green")))
    if not one.causes and one.code == OK:
        rows.append((table.Cell("Fine", "green"), "nothing has failed here" if one.log else "the images are whole"))
    if not one.causes and one.code == UNKNOWN:
        rows.append((table.Cell("Cause", "yellow"), "not one that is known; the lines below are what matters"))
        rows.append(("Remedy", f"if they don't tell you enough, {REPORT}"))
    lines += table.table(rows)
    if one.evidence:
        lines += ["", table.paint("Evidence", "bold")]
        evidence = [(str(line.number), _context(line), line.text) for line in one.evidence]
        if not any(context for _, context, _ in evidence):
            lines += table.table([(number, text) for number, _, text in evidence], indent=2, right=(0,))
        else:
            lines += table.table(evidence, indent=2, right=(0,))
    return lines


def heading(log: logs.Log) -> str:
    """One line: which log, whose, how far it came."""
    what = {"dump": "dump", "restore": "restore"}.get(log.kind, "log")
    by = f" by CRIU {log.version}" if log.version else ""
    ended = "finished" if log.finished and not log.errors else f"failed after {log.seconds:.2f} s"
    stage = f", last stage {log.stage}" if log.stage and ended != "finished" else ""
    return table.visible(f"{log.path}: {what}{by}, {ended}{stage}")


def to_json(one: Diagnosis) -> dict[str, Any]:
    """Documented in docs/json.md."""
    log = one.log
    return {
        "log": log.path if log else None,
        "operation": log.kind if log else None,
        "criu": log.version if log else None,
        "kernel": log.kernel if log else None,
        "stage": log.stage if log else None,
        "finished": log.finished if log else None,
        "causes": [{"reason": c.reason, "message": c.message, "remedy": c.remedy} for c in one.causes],
        "evidence": [{"line": line.number, "seconds": line.seconds, "text": line.text} for line in one.evidence],
    }


def _context(line: logs.Line) -> str:
    return " ".join(filter(None, (line.process, line.object)))


def _age(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
