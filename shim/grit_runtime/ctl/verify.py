"""gritctl verify: whether a checkpoint is whole, unchanged, and can be restored on this node."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import click

from grit_runtime import chain, checks, gates, gpu, layer, manifest, settings
from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import features, images
from grit_runtime.ctl import BAD, OK, UNKNOWN, checkpoints, table

APART = (layer.NAME, layer.SHM_NAME)  # these may stand beside the images


class Gate(NamedTuple):
    """One thing that was looked at. `level`: ok, bad, allowed (refused and passed) or unknown."""

    name: str
    level: str
    reason: str
    message: str
    remedy: str


@click.command()
@click.argument("checkpoint")
@click.option("--node", "here", is_flag=True, help="Compare it with this node too.")
@click.option("--allow", multiple=True, metavar="REASON", help="Pass a gate that refuses for this reason. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, checkpoint: str, here: bool, allow: tuple[str, ...], as_json: bool) -> None:
    """Say whether a checkpoint is whole, unchanged, and fits this node.

    CHECKPOINT is its folder or the image folder in it. All its bytes are read and hashed, on all cores. Exits with 0
    when every gate is open, 1 when one is closed, 2 when that could not be determined.
    """
    unknown = sorted(set(allow) - checks.table().keys())
    if unknown:
        raise click.BadParameter(f"there is no reason called {', '.join(unknown)}", param_hint="--allow")
    with checkpoints.opened(checkpoint) as place:
        found = verify(place, here=here, allow=allow)
    code = exit_code(found)
    if as_json:
        rows = [gate._asdict() for gate in found]
        table.show_json("verify", {"path": checkpoint, "node": here, "ok": code == OK, "gates": rows})
    else:
        table.show([*lines(found), "", verdict(found, here)])
    ctx.exit(code)


def verify(place: checkpoints.Place, *, here: bool, allow: Collection[str]) -> list[Gate]:
    """All gates, the closed ones of each kind first."""
    if place.archive:
        raise refuse("archive-not-verified", path=place.given)
    if not place.images:
        raise refuse("no-images", path=place.given)
    found = gate("images", "every file that the images promise is there", allow, lambda: images.problems(place.images))
    found += gate("base", "it needs no other checkpoint", allow, lambda: incremental(place.images))
    try:
        content = manifest.read(place.images)
    except Refusal as refusal:
        return [*found, closed("manifest", refusal, allow)]
    fine = f"{len(content['files'])} files are as they were made"
    found += gate("hashes", fine, allow, lambda: changed(place, content))
    if content["gpu"]:
        fine = "the images hold what was on the GPUs"
        found += gate("gpu memory", fine, allow, lambda: gpu_bytes(place.images, content))
    if here:
        found += node(content, allow)
    return found


def node(content: dict[str, Any], allow: Collection[str]) -> list[Gate]:
    """The gates between the checkpoint and this node."""
    found = gate("criu", "CRIU is there and works", allow, criu_works)
    try:
        configured = settings.load()
    except Refusal as refusal:
        return [*found, closed("configuration", refusal, allow)]
    found += gate("node", "processor, CRIU and runtime fit", allow, lambda: differs(configured, content))
    if content["gpu"]:
        found += gate("gpus", "this node's GPUs can take them", allow, lambda: gpus(configured, content, allow))
    return found


def gate(name: str, fine: str, allow: Collection[str], look: Callable[[], Iterable[Refusal]]) -> list[Gate]:
    """What `look` refuses, by giving or by raising it, as gates; one that says `fine` if it refuses nothing."""
    refusals: list[Refusal] = []
    try:
        refusals.extend(look())
    except Refusal as raised:
        refusals.append(raised)
    except OSError as error:
        return [Gate(name, "unknown", "", f"{error.filename or 'the kernel'}: {error.strerror}", "")]
    return [closed(name, refusal, allow) for refusal in refusals] or [Gate(name, "ok", "", fine, "")]


def closed(name: str, refusal: Refusal, allow: Collection[str]) -> Gate:
    """A gate that refuses, unless its reason is allowed."""
    level = "allowed" if refusal.reason in allow else "bad"
    return Gate(name, level, refusal.reason, refusal.message, refusal.remedy)


def incremental(folder: str) -> list[Refusal]:
    """CRIU follows `parent` to read pages that are not in this image."""
    parent = images.parent(folder)
    return [refuse("image-incremental", path=folder, parent=parent)] if parent is not None else []


def changed(place: checkpoints.Place, content: dict[str, Any]) -> list[Refusal]:
    """Files that are otherwise than the manifest says, missing, or images that it doesn't know."""
    listed = content["files"]
    near = {name: facts for name, facts in listed.items() if name not in APART or place.beside(name) == ""}
    beside = {name: facts for name, facts in listed.items() if name not in near}
    different = manifest.differences(place.images, near, content=True)
    for name, facts in beside.items():
        different += manifest.differences(os.path.dirname(place.beside(name)), {name: facts}, content=True)
    found = [refuse("image-changed", name=name, path=place.images, what=WHAT[what]) for name, what in different]
    for name in sorted(os.listdir(place.images)):
        if name.endswith(".img") and name not in listed:
            found.append(refuse("image-changed", name=name, path=place.images, what="it was added later"))
    return found


WHAT = {
    "missing": "it is missing",
    "size": "its size is another",
    "content": "its content is another",
    "name": "it is no plain file",
}


def gpu_bytes(folder: str, content: dict[str, Any]) -> list[Refusal]:
    """Refuses images that are smaller than the GPU memory that was moved into the processes."""
    taken = content["gpu"].get("taken") if content["gpu"] else 0
    if isinstance(taken, int) and taken > 0:
        gpu.prove_in_images(folder, taken)
    return []


def gpus(configured: settings.Settings, content: dict[str, Any], allow: Collection[str]) -> list[Refusal]:
    """What of this node's GPUs, all of them, differs and is allowed; raises the first refusal that isn't."""
    made = gpu.plan_restore(configured.cuda, content["gpu"], {}, allow)
    made.close()
    return made.passed


def differs(configured: settings.Settings, content: dict[str, Any]) -> list[Refusal]:
    """What of this node is too different from the one that made the checkpoint."""
    runtime = chain.flavour(chain.next_runtime(configured)).name
    return gates.node(content["node"], {**manifest.node(), "criu": features.version(), "runtime": runtime})


def criu_works() -> list[Refusal]:
    found = features.require()
    return [refuse("criu-check", what=found.check)] if found.check else []


def exit_code(found: Iterable[Gate]) -> int:
    levels = {gate.level for gate in found}
    return BAD if "bad" in levels else UNKNOWN if "unknown" in levels else OK


def verdict(found: list[Gate], here: bool) -> str:
    """The last line: what the gates come to."""
    code, passed = exit_code(found), sorted({gate.reason for gate in found if gate.level == "allowed"})
    if code == BAD:
        return table.paint(f"This checkpoint must not be restored{' here' if here else ''}.", "red")
    if code == UNKNOWN:
        return table.paint("Not everything could be looked at.", "yellow")
    if passed:
        return table.paint(f"Nothing stands in the way but what was allowed: {', '.join(passed)}.", "yellow")
    return table.paint(f"This checkpoint is whole and unchanged{', and fits this node' if here else ''}.", "green")


def lines(found: Iterable[Gate]) -> list[str]:
    """Lines for people: one a gate, the remedy of a closed one below it."""
    rows: list[tuple[table.Text, table.Text, table.Text]] = []
    for one in found:
        mark = table.Cell("allowed", "yellow") if one.level == "allowed" else table.mark(one.level)
        rows.append((mark, one.name, f"{one.reason}: {one.message}" if one.reason else one.message))
        if one.level == "bad":
            rows.append(("", "", table.Cell(one.remedy, "dim")))
    return table.table(rows)
