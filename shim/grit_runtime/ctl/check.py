"""gritctl check: whether a running container can be checkpointed, and what would be done about what it holds."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import click

from grit_runtime import cgroup, gpu, look, settings, watches
from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import features
from grit_runtime.ctl import BAD, OK, UNKNOWN, table
from grit_runtime.ctl.main import fail
from grit_runtime.look import containers
from grit_runtime.look.containers import Container
from grit_runtime.look.judging import HANDLED, REFUSED, WARNING

LEVELS = {REFUSED: "bad", WARNING: "warn", HANDLED: "info"}
OURS = "org.criu.config"
SHOWN = 3  # findings of one reason on the screen; the JSON has them all


class Row(NamedTuple):
    """One finding for people. `process` is 0 for the container as a whole."""

    action: str
    reason: str
    process: int
    object: str
    text: str
    remedy: str


class Report(NamedTuple):
    """What is said of one container. `bytes`: memory of its processes, and of its GPUs."""

    container: Container
    processes: int
    files: int
    bytes: int
    gpu_bytes: int
    rows: list[Row]

    @property
    def code(self) -> int:
        return BAD if any(row.action == REFUSED for row in self.rows) else OK


@click.command()
@click.argument("container", default="")
@click.option("--root", default="", metavar="DIR", help="The state folder of the runtime, if it isn't a usual one.")
@click.option("--pid", type=int, default=0, metavar="PID", help="Any process of the container.")
@click.option("--images", default="", metavar="DIR", help="Where the images would go, to compare with its free space.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, container: str, root: str, pid: int, images: str, as_json: bool) -> None:
    """Say whether a running container can be checkpointed.

    CONTAINER is an id or its beginning, a container's name, or a pod's name (NAMESPACE/POD, POD/CONTAINER), of
    containerd, CRI-O, podman, docker, or of runc and crun themselves. Nothing is changed. Exits with 0 if it is ready,
    1 if a checkpoint would be refused, 2 if that can't be determined.
    """
    if bool(container) == bool(pid):
        raise click.UsageError("Name a container, or give --pid.")
    try:
        found = [containers.by_process(pid)] if pid else containers.find(container, root)
        reports = [report(one, images) for one in found]
    except Refusal as problem:
        if as_json:
            table.show_json("check", {"ready": None, "error": problem.reason, "containers": []})
        fail(f"{problem.reason}: {problem.message}. {table.sentence(problem.remedy)}")
        ctx.exit(UNKNOWN)
    code = max(one.code for one in reports)
    if as_json:
        table.show_json("check", {"ready": code == OK, "error": None, "containers": [to_json(one) for one in reports]})
    else:
        for number, one in enumerate(reports):
            table.show(([""] if number else []) + screen(one))
    ctx.exit(code)


def report(container: Container, images: str = "", ghost_limit: int = 0) -> Report:
    """Look at a container, in the way that a checkpoint does before it starts. `ghost_limit`: bytes, 0 as configured.

    Refuses `process-not-found` when it has ended, `not-permitted` when it can't be read.
    """
    conf = settings.load()
    pids = cgroup.processes(cgroup.of(container.pid)) if container.root else containers.descendants(container.pid)
    try:
        seen = look.look(pids, spec=container.spec or None, init=container.pid)
    except PermissionError:
        raise refuse("look-not-permitted", name=container.id) from None
    if not seen.processes:
        raise refuse("process-not-found", pid=container.pid)
    rows = [_row(found, seen) for found in look.findings(seen, ghost_limit=ghost_limit or conf.checkpoint.ghost_limit)]
    rows += _runtime(container)
    rows += _watches(seen, pids)
    held, gpu_rows = _gpu(conf.cuda, seen, pids, container.spec)
    rows += gpu_rows + _criu()
    memory = sum(process.memory for process in seen.processes)
    rows += _space(images, memory + held)
    order = list(LEVELS)
    rows.sort(key=lambda row: order.index(row.action))
    return Report(container, len(seen.processes), len(seen.links), memory, held, rows)


def _row(found: look.Finding, seen: look.Look) -> Row:
    """A finding in words, with the process's name beside its number."""
    process = seen.process(found.process)
    label = f"{found.process} ({process.name})" if process and process.name != found.object else str(found.process)
    told = refuse(found.reason, **{**found.facts, "process": label, "object": found.object})
    return Row(found.action, found.reason, found.process, found.object, told.message, told.remedy)


def _refused(problem: Refusal, process: int = 0, action: str = REFUSED) -> Row:
    return Row(action, problem.reason, process, "", problem.message, problem.remedy)


def _runtime(container: Container) -> list[Row]:
    """Whether it was started through us: `create` and `run` leave their annotation in every bundle."""
    if not container.bundle or not container.spec or OURS in (container.spec.get("annotations") or {}):
        return []
    return [_refused(refuse("runtime-other"), action=WARNING)]


def _watches(seen: look.Look, pids: list[int]) -> list[Row]:
    """Whether a path is found for each watch, without which it can't be put back."""
    try:
        watches.require_resolved(watches.resolve(watches.from_links(seen.links, pids), seen.init))
    except Refusal as problem:
        return [_refused(problem)]
    return []


def _gpu(cuda: settings.Cuda, seen: look.Look, pids: list[int], spec: dict[str, Any]) -> tuple[int, list[Row]]:
    """The bytes that the container has on GPUs, and what its suspension would be refused for."""
    try:
        suspension = gpu.plan(cuda, pids, seen.links, spec or None)
    except Refusal as problem:
        return 0, [_refused(problem)]
    suspension.close()
    if not suspension.known:
        return 0, []
    told = refuse("gpu-held", count=len(suspension.known), size=table.size(suspension.bytes))
    return suspension.bytes, [_refused(told, action=HANDLED)]


def _criu() -> list[Row]:
    """Whether this node's CRIU can do it at all."""
    found = features.features()
    try:
        features.require()
    except Refusal as problem:
        return [_refused(problem)]
    return [_refused(refuse("criu-check", what=found.check), action=WARNING)] if found.check else []


def _space(images: str, need: int) -> list[Row]:
    """Whether the images fit where they would go, if that was told. Overlay layers and page sharing are not counted."""
    if not images:
        return []
    place = os.path.abspath(images)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    facts = os.statvfs(place)
    free = facts.f_bavail * facts.f_frsize
    if free >= need:
        return []
    return [_refused(refuse("space-short", path=place, free=table.size(free), need=table.size(need)))]


def to_json(one: Report) -> dict[str, Any]:
    """A report with names that stay: the fields of `Row`, and the container's id, name and sizes."""
    return {
        "id": one.container.id,
        "names": list(one.container.names),
        "pid": one.container.pid,
        "ready": one.code == OK,
        "processes": one.processes,
        "files": one.files,
        "memory": one.bytes,
        "gpu_memory": one.gpu_bytes,
        "findings": [row._asdict() for row in one.rows],
    }


def screen(one: Report) -> list[str]:
    """The report as a person reads it: a line about the container, its findings with remedies, the verdict."""
    name = next(iter(one.container.names), "")
    head = f"{one.container.id[:64]}" + (f" ({name})" if name else "")
    processes = "1 process" if one.processes == 1 else f"{one.processes} processes"
    sizes = f"{processes}, {one.files} open files, {table.size(one.bytes)} of memory"
    sizes += f", {table.size(one.gpu_bytes)} on GPUs" if one.gpu_bytes else ""
    lines = [table.paint(table.visible(head), "bold"), *table.table([[sizes]]), ""]
    cells: list[tuple[table.Text, table.Text]] = []
    for reason in dict.fromkeys(row.reason for row in one.rows):
        rows = [row for row in one.rows if row.reason == reason]
        for row in rows[:SHOWN]:
            cells.append((table.mark(LEVELS[row.action]), f"{row.reason}: {row.text}"))
        if len(rows) > SHOWN:
            cells.append(("", f"and {len(rows) - SHOWN} more of {reason}"))
        cells.append(("", table.Cell(table.sentence(rows[0].remedy), "dim")))
    lines += [*table.table(cells), ""] if cells else []
    ready = one.code == OK
    words = "Ready for a checkpoint." if ready else "A checkpoint would be refused."
    return [*lines, table.paint(words, "green" if ready else "red")]
