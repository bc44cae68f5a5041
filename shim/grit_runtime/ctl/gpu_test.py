"""gritctl gpu-test: whether GPU memory survives a checkpoint on this node, seen by a hash."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from typing import Any, NamedTuple

import click

from grit_runtime import manifest, records
from grit_runtime.checks import refuse
from grit_runtime.ctl import BAD, OK, table
from grit_runtime.cuda import probe, trial


class Phase(NamedTuple):
    """One line of the table. `bytes` 0: nothing was moved."""

    name: str
    seconds: float
    bytes: int = 0


class Verdict(NamedTuple):
    """What came of it: the hashes of each process before and after; `survived` is None if it was not brought back."""

    backend: str
    before: list[str]
    after: list[str]
    phases: list[Phase]

    @property
    def survived(self) -> bool | None:
        return self.before == self.after if self.after else None


UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Bytes of 4G, 512M, 1048576; ValueError for anything else. Pure."""
    unit = UNITS.get(text[-1:].upper(), 0)
    return int(text[:-1]) * unit if unit else int(text)


class Bytes(click.ParamType):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            found = value if isinstance(value, int) else size(str(value))
        except ValueError:
            found = 0
        if found < 1 << 20:
            self.fail(f"{value} is not a size of at least 1M, like 512M or 4G", param, ctx)
        return found


@click.command()
@click.option("--bytes", "amount", type=Bytes(), default="1G", show_default=True, help="GPU memory of each process.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="How many processes.")
@click.option("--backend", type=click.Choice(["auto", "torch", "libcuda"]), default="auto", show_default=True)
@click.option("--python", default="", metavar="PATH", help="The Python in the container (that of PATH).")
@click.option("--lower", default="/", metavar="DIR", show_default=True, help="The container's file system; no overlay.")
@click.option("--to", "target", metavar="DIR", default="", help="Only checkpoint, into DIR, for another node.")
@click.option("--from", "source", metavar="DIR", default="", help="Only restore, from DIR, that another node wrote.")
@click.option("--runtime", default="grit-runtime", show_default=True, help="The runtime to test.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context, amount: int, processes: int, backend: str, python: str, lower: str, target: str, source: str,
    runtime: str, as_json: bool,
) -> None:  # fmt: skip
    """Fill GPU memory in a container, checkpoint it, restore it, and compare hashes.

    The container is our own, over this node's file system: no image is needed. With --to and --from the two halves run
    on two nodes; copy DIR from one to the other. Exits with 0 if the hashes are equal, 1 if not or if something fails.
    """
    if target and source:
        raise click.UsageError("--to and --from are for two calls, one on each node")
    if os.geteuid() != 0:
        raise refuse("gpu-test-failed", step="start", error="not root")
    python = python or trial.find_python()
    wanted = ["--bytes", str(amount), "--processes", str(processes)]
    if backend == "torch" or (backend == "auto" and trial.has_torch(python)):
        wanted.append("--torch")
    name, say = "gritctl-gpu-test", speaker(as_json)
    keep = target or source or tempfile.mkdtemp(prefix="gpu-test-", dir="/var/lib")
    if source:
        wanted = read_wanted(source)
    try:
        place = trial.folder(name)
        with trial.Trial(place, name, wanted, runtime=[runtime], python=python, lower=lower, say=say) as made:
            verdict = run(made, keep, first=not source, second=not target)
    finally:
        if not target and not source:
            shutil.rmtree(keep, ignore_errors=True)
    if as_json:
        table.show_json("gpu-test", to_json(verdict, amount, processes))
    else:
        table.show(lines(verdict, keep))
    ctx.exit(BAD if verdict.survived is False else OK)


def run(made: trial.Trial, keep: str, *, first: bool, second: bool) -> Verdict:
    """Both halves or one of them."""
    phases: list[Phase] = []
    images, note = os.path.join(keep, "checkpoint"), os.path.join(keep, "gpu-test.json")
    if first:
        before, backend = fill(made, phases)
        freeze(made, images, phases)
        probe.put(note, {"program": made.program, "python": made.python, "before": before, "backend": backend})
    else:
        told = read_note(note)
        before, backend = list(told["before"]), str(told["backend"])
    after = thaw(made, images, phases) if second else []
    return Verdict(backend, before, after, phases)


def fill(made: trial.Trial, phases: list[Phase]) -> tuple[list[str], str]:
    made.say("starting a container and filling GPU memory")
    begin = time.monotonic()
    made.start()
    status = made.status()
    total = status["bytes"] * made.processes
    phases.append(Phase("start and fill", time.monotonic() - begin, total))
    made.say("hashing")
    begin = time.monotonic()
    before = made.hashes()
    phases.append(Phase("hash", time.monotonic() - begin, total))
    return before, str(status["backend"])


def freeze(made: trial.Trial, images: str, phases: list[Phase]) -> None:
    made.say("checkpointing")
    done = made.checkpoint(images)
    phases += inner(made.name, "dump")
    phases.append(Phase("checkpoint in all", done.seconds, stored(images)))


def thaw(made: trial.Trial, images: str, phases: list[Phase]) -> list[str]:
    made.say("restoring")
    done = made.restore(images)
    phases += inner(made.name, "restore", sizes(images))
    phases.append(Phase("restore in all", done.seconds, stored(images)))
    made.say("hashing again")
    return made.hashes()


def inner(container: str, operation: str, known: dict[str, int] | None = None) -> list[Phase]:
    """The phases that the runtime itself recorded of its last operation on this container; `known`: sizes that the
    record may lack."""
    for kept in records.listing(container):
        if kept.operation == operation:
            record = kept.record()
            sizes = {**(known or {}), **(record.get("bytes") or {})}
            gpu, beside = int(sizes.get("gpu", 0)), int(sizes.get("beside", 0))
            criu = int(sizes.get("images", 0)) - beside
            moved = {"suspend": gpu, "resume": gpu, "save": beside, "return": beside, "criu": criu}
            rows = (record.get("phases") or {}).items()
            return [Phase(f"  {name}", float(took), moved.get(name, 0)) for name, took in rows]
    return []


def stored(images: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(images) if entry.is_file())


def sizes(images: str) -> dict[str, int]:
    """Bytes of a checkpoint: of all its files, that came from GPUs, and of those past CRIU."""
    gpu = manifest.read(images)["gpu"]
    beside = sum(size for row in gpu.get("beside", []) for _, size in row["regions"])
    return {"images": stored(images), "gpu": int(gpu.get("taken", 0)), "beside": beside}


def read_note(path: str) -> dict[str, Any]:
    """What the first half left; refuses gpu-test-failed. It is only compared with, but for the program's arguments."""
    try:
        with open(path, encoding="utf-8") as file:
            note = json.load(file)
        if not isinstance(note, dict) or not all(name in note for name in ("program", "before", "backend")):
            raise ValueError("a field is missing")
    except (OSError, ValueError) as error:
        raise refuse("gpu-test-failed", step="reading gpu-test.json", error=error) from None
    return note


def read_wanted(source: str) -> list[str]:
    """The program's arguments, of which only those that we know are taken."""
    known = {"--torch", "--bytes", "--processes"}
    words = [str(word) for word in read_note(os.path.join(source, "gpu-test.json"))["program"]]
    if not all(word in known or word.isdigit() for word in words):
        raise refuse("gpu-test-failed", step="reading gpu-test.json", error="it is not one that --to wrote")
    return words


def rate(phase: Phase) -> str:
    return f"{phase.bytes / phase.seconds / 1e9:.2f} GB/s" if phase.bytes and phase.seconds else ""


def lines(verdict: Verdict, keep: str) -> list[str]:
    rows = [
        (phase.name, f"{phase.seconds:.2f} s", table.size(phase.bytes) if phase.bytes else "", rate(phase))
        for phase in verdict.phases
    ]
    found = table.table(rows, ("phase", "took", "moved", "rate"), right=(1, 2, 3))
    if verdict.survived is None:
        found.append(f"The checkpoint is in {keep}. Copy it to the other node: gritctl gpu-test --from {keep}")
    elif verdict.survived:
        found.append(f"{len(verdict.after)} hash(es) of GPU memory are equal ({verdict.backend}): this node works.")
    else:
        found.append("GPU memory is NOT what it was: do not use this node for checkpoints.")
    return found


def to_json(verdict: Verdict, amount: int, processes: int) -> dict[str, Any]:
    return {
        "backend": verdict.backend,
        "bytes": amount,
        "processes": processes,
        "before": verdict.before,
        "after": verdict.after,
        "survived": verdict.survived,
        "phases": [{**phase._asdict(), "name": phase.name.strip()} for phase in verdict.phases],
        "node": manifest.node(),
    }


def speaker(quiet: bool) -> Any:
    """Progress, on stderr."""
    return (lambda _: None) if quiet else (lambda text: click.echo(f"gpu-test: {text} ...", err=True))
