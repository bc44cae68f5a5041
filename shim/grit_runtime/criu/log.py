"""CRIU's logs: which lines say why it failed, and in which stage that was.

A line is `(seconds.microseconds) text`; errors read `Error (criu/file.c:123): text`. Restored tasks write
`pie: PID: text`. Logs come with checkpoints from elsewhere and can be gigabytes long: they are read line by line,
and only so much of them is kept.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu.symptoms import SYMPTOMS, anything

__all__ = ["SYMPTOMS", "WARNINGS", "Cause", "Line", "Log", "cause", "causes", "explain", "read", "refusal", "summary"]

WARNINGS = ("gpu-plugin-off",)  # known lines that may stand in the log of a success
KEEP = 200  # error lines
LONGEST = 4096  # bytes of a line that are looked at
LINE = r"^(?:\((?P<time>\d+\.\d+)\))?\s*(?P<text>.*)$"
ERROR = r"^(?:pie: \d+: )?(?:\s*\d+: )?Error \((?P<where>[^)]*)\): ?(?P<what>.*)$"
STAGE = r"^Running ([a-z-]+) scripts"
# Errors that CRIU logs and goes on after, or that only follow from an earlier one.
HARMLESS = (
    r"rlimit: Can't setup RLIMIT_NOFILE for self|Unable to detach from|^Dumping FAILED|^Restoring FAILED"
    r"|Dump \w+ \(pid: \d+\) failed with -1|Can't check the link state|No such device.*link.*dump"
    r"|cgroupd: recv req error|Unable to open fd=\d+ id=|^\d+ exited, status="
    r"|Unable to kill|Pre-dumping FAILED|Dumping pstree \(pid: \d+\) failed"
)
TASK = r"Dumping task \(pid: (\d+) comm: (.*)\)$"
SPACE = r"Dump [A-Z]+ namespace .*via (\d+)$"
WHOLE = ("Dumping pstree (pid", "Dumping file-locks")  # from here on it is about no single process
# What only follows from another failure -> that one.
FOLLOWS = {"criu-timeout": "task-traced"}
DESCRIPTOR = r"^(\d+) fdinfo (\d+): "
# Facts that a reason's text may want and that the line may leave out.
UNTOLD = {
    "place": "the log doesn't tell its name",
    "mount": "of the container",
    "name": "without a name",
    "kind": "unknown",
    "path": "a file",
    "limit": "CRIU's ghost-limit",
    "process": "of the container",
    "object": "see the log",
}


class Line(NamedTuple):
    """`number` counts from 1; `seconds` since CRIU's start; `text` without the time.

    `process` (host's PID and name) and `object` (fd N) are what CRIU was dumping when it wrote the line.
    """

    number: int
    seconds: float
    text: str
    process: str = ""
    object: str = ""


class Log(NamedTuple):
    """`kind`: dump, restore or empty. `stage`: the last that CRIU ran scripts for before it failed. `lines`: errors
    and other lines by which a known failure is recognised."""

    path: str
    kind: str
    version: str
    kernel: str
    stage: str
    seconds: float
    finished: bool
    lines: list[Line]

    @property
    def errors(self) -> list[Line]:
        """The error lines that say something, in their order."""
        return [line for line in self.lines if re.match(ERROR, line.text) and not re.search(HARMLESS, what(line))]


class Cause(NamedTuple):
    """A known failure: the reason's name, what the line says about it, and the line."""

    reason: str
    facts: dict[str, str]
    line: Line


def read(path: str | os.PathLike[str]) -> Log:
    """Read a log. Refuses `log-unreadable`."""
    kind = version = kernel = stage = process = thing = ""
    finished, failing, seconds = False, False, 0.0
    kept: list[Line] = []
    known = anything()
    for number, raw in _lines(path):
        match = re.match(LINE, raw)
        text = match["text"] if match else raw
        seconds = float(match["time"]) if match and match["time"] else seconds
        if text.startswith("Version: "):
            version = text[9:].split(" ")[0]
        elif text.startswith("Running on "):
            kernel = text[11:]
        elif (found := re.match(STAGE, text)) and not failing:
            stage = found[1]
        elif text.startswith(("Dumping finished successfully", "Restore finished successfully", "Writing stats")):
            finished = True
        kind = kind or _kind(text, stage)
        if task := re.search(TASK, text):
            process, thing = f"{task[1]} ({task[2]})", ""
        elif descriptor := re.match(DESCRIPTOR, text):
            thing = f"fd {descriptor[2]}"
        elif space := re.match(SPACE, text):
            process, thing = space[1], ""
        elif text.startswith(WHOLE):
            process = thing = ""
        elif text.startswith("-----"):
            thing = ""
        if re.match(ERROR, text) or _telling(known, text, timed=bool(match and match["time"])):
            kept.append(Line(number, seconds, text, process, thing))
            failing = failing or not re.search(HARMLESS, what(kept[-1]))
            if len(kept) > KEEP:
                del kept[KEEP // 2]  # the first ones tell the cause, the last ones how it ended
    return Log(os.fspath(path), kind, version, kernel, stage, seconds, finished, kept)


def causes(log: Log) -> list[Cause]:
    """All known failures that a log's lines tell, in the order of SYMPTOMS; each reason once."""
    result: dict[str, Cause] = {}
    explained: set[int] = set()
    for pattern, reason in SYMPTOMS:
        for line in log.lines:
            if line.number in explained or re.search(HARMLESS, what(line)):
                continue
            found = re.search(pattern, line.text)
            if found:
                explained.add(line.number)
                facts = {name: value for name, value in found.groupdict().items() if value is not None}
                if "size" in facts:
                    facts["size"] += " bytes"
                if "path" in facts and reason.startswith(("file-", "shm-", "link-")):
                    facts["path"] = "/" + facts["path"].lstrip("/")  # CRIU leaves the root out
                result.setdefault(reason, Cause(reason, facts, line))
    return [cause for cause in result.values() if FOLLOWS.get(cause.reason) not in result]


def cause(log: Log) -> Cause | None:
    """The first known failure, in the order of SYMPTOMS, that any of a log's lines tells."""
    return next(iter(causes(log)), None)


def summary(path: str | os.PathLike[str]) -> str:
    """What went wrong, in one line: the known cause's text, or else the first errors; empty when there are none."""
    try:
        log = read(path)
    except Refusal as refusal:
        return refusal.message
    known = cause(log)
    if known:
        told = explain(known)
        return f"{told.reason}: {told.message}"
    return "; ".join(what(line) for line in log.errors[:2])


def refusal(path: str | os.PathLike[str]) -> Refusal | None:
    """The known cause in a log as a refusal; None when there is none, or no log."""
    try:
        known = cause(read(path))
    except Refusal:
        return None
    return explain(known) if known else None


def explain(known: Cause, **more: object) -> Refusal:
    """The cause as a refusal. `more`: facts that the log doesn't hold, such as the name of a mount."""
    line = known.line
    context = {"what": what(line)}
    if line.process:
        context["process"] = line.process
    if line.object:
        context["object"] = line.object
    return refuse(known.reason, **{**UNTOLD, **context, **known.facts, **more})


def what(line: Line) -> str:
    """The line's message, without `Error (file:line)`."""
    found = re.match(ERROR, line.text)
    return (found["what"] if found else line.text).strip()


def _kind(text: str, stage: str) -> str:
    """dump or restore, if a line tells."""
    if text.startswith(("Dumping processes (pid", "Dumping finished", "Pre-dump")):
        return "dump"
    return "restore" if stage in ("pre-restore", "setup-namespaces") or text.startswith("Restoring ") else ""


def _telling(known: re.Pattern[str], text: str, *, timed: bool) -> bool:
    """Lines that aren't CRIU's errors, and yet tell a known failure: warnings, and what other programs write."""
    return (not timed or text.startswith(("Warn ", "cuda_plugin"))) and known.search(text) is not None


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise refuse("log-unreadable", path=path, error=error.strerror) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise refuse("log-unreadable", path=path, error="it is not a file")
    with os.fdopen(fd, "rb") as file:
        number = 0
        whole = True
        while raw := file.readline(LONGEST):
            if whole:
                number += 1
                yield number, raw.decode("utf-8", "replace").rstrip("\n")
            whole = raw.endswith(b"\n")
