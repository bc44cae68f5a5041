"""gritctl install: the runtime handler in the configuration of whatever starts containers here."""

from __future__ import annotations

import os
import re

import click

from grit_runtime.checks import Refusal, refuse
from grit_runtime.ctl import BAD, changes, proof, table, targets
from grit_runtime.ctl.containerd import Edit, Handler
from grit_runtime.ctl.main import refused

# systemd's units by what was configured; only one of them runs on a node.
UNITS = {"containerd": ("containerd",), "k3s": ("k3s", "k3s-agent"), "rke2": ("rke2-server", "rke2-agent")}


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would change, as a diff, and change nothing.")
@click.option("--containerd", "config", metavar="PATH", help=f"containerd's configuration [{targets.MAIN}].")
@click.option("--handler", default="grit", metavar="NAME", help="Name of the runtime handler [grit].")
@click.option(
    "--next", "next_runtime", metavar="PATH", help="The runtime behind grit-runtime, set in its configuration."
)
@click.option(
    "--only", multiple=True, metavar="NAME", help="Only this: containerd, k3s, RKE2, GRIT, podman, grit-runtime."
)
@click.option("--restart", is_flag=True, help="Restart what has to see the change; containers go on.")
@click.option("--root", default="", hidden=True)
@click.pass_context
def command(
    ctx: click.Context,
    dry_run: bool,
    restart: bool,
    config: str | None,
    handler: str,
    next_runtime: str | None,
    only: tuple[str, ...],
    root: str,
) -> None:
    """Add the runtime handler to what runs containers here.

    containerd (1.6, 1.7, 2.x), k3s, RKE2, GRIT's shim and podman are configured where they are found. A backup of each
    file is kept beside it, and `gritctl uninstall` puts it back. Nothing is restarted without --restart. Exits with 1
    if something could not be configured, or if the chain behind grit-runtime is wrong.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", handler):
        raise refuse("handler-name", name=handler)
    config = os.path.abspath(config) if config else None
    found = targets.find(root, config, Handler(handler), next_runtime)
    found = [t for t in found if not only or t.name.lower() in {name.lower() for name in only}]
    if not any(target.name != "grit-runtime" for target in found) and not only:
        raise refuse("nothing-to-configure")
    rows, problems, changed = [], [], []
    for target in found:
        word, problem = _make(root, target, dry_run)
        rows.append((target.name, word, target.path))
        if problem:
            problems.append(problem)
        elif target.edit and target.restart:
            changed.append(target.restart)
    table.show(table.table(rows))
    for name in changed if not dry_run else []:
        _restart(UNITS[name], restart)
    problems += _chain(root, found)
    for problem in problems:
        refused(problem)
    if problems:
        ctx.exit(BAD)


def _make(root: str, target: targets.Target, dry_run: bool) -> tuple[table.Cell, Refusal | None]:
    """Make the target's edit, or show it; what to say of it."""
    if target.problem:
        return table.Cell("left alone", "red"), target.problem
    if target.edit is None:
        return table.Cell("has it already", "green"), None
    if dry_run:
        table.show(diff_lines(target.edit))
        return table.Cell("would change", "yellow"), None
    try:
        changes.apply(root, target.edit, target.prove)
    except Refusal as problem:
        return table.Cell("left alone", "red"), problem
    return table.Cell("changed" if target.edit.before is not None else "written", "green"), None


def _restart(units: tuple[str, ...], wanted: bool) -> None:
    """Restart whichever of the units is running; or say which has to be."""
    running = [u for u in units if proof.output(["systemctl", "is-active", u]) is not None] or list(units[:1])
    if not wanted:
        table.show([f"To see the change: systemctl restart {running[0]}. Containers go on meanwhile."])
    elif proof.output(["systemctl", "restart", running[0]]) is None:
        raise refuse("restart-failed", unit=running[0])


def _chain(root: str, found: list[targets.Target]) -> list[Refusal]:
    """What is wrong with the chain behind us, as it is after the edits."""
    ours = next((target for target in found if target.name == "grit-runtime"), None)
    if ours is None:
        return []
    text = ours.edit.after if ours.edit else changes.read(root, targets.OURS) or ""
    problem = targets.chain_problem(targets.next_of(text), targets.has_gpu(root), targets.nvidia_here(root))
    return [problem] if problem else []


def diff_lines(edit: Edit) -> list[str]:
    """The edit's diff, coloured as diffs are."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    return [
        table.paint(table.visible(line).replace("\\t", "\t"), "bold" if i < 2 else colours.get(line[:1], ""))
        for i, line in enumerate(changes.diff(edit))
    ]
