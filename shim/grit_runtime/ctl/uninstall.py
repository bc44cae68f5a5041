"""gritctl uninstall: the configuration files as they were before gritctl install."""

from __future__ import annotations

import click

from grit_runtime.checks import Refusal, refuse
from grit_runtime.ctl import BAD, changes, table
from grit_runtime.ctl.containerd import Edit
from grit_runtime.ctl.install import diff_lines
from grit_runtime.ctl.main import refused


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would change, as a diff, and change nothing.")
@click.option("--root", default="", hidden=True)
@click.pass_context
def command(ctx: click.Context, dry_run: bool, root: str) -> None:
    """Take back what install has done.

    A file that nobody else has edited since is put back byte for byte; from any other our entries are taken out and the
    rest stays. Containers that run through the handler go on, but they can't be started again.
    """
    paths = changes.installed(root)
    if not paths:
        raise refuse("nothing-installed")
    rows, problems = [], []
    for path in paths:
        try:
            before, after, problem = changes.taking_back(root, path)
            if dry_run and before is not None:
                table.show(diff_lines(Edit(path, before, after or "", [])))
            elif not dry_run:
                changes.take_back(root, path)
            word = table.Cell("gone already" if before is None else "removed" if after is None else "put back", "green")
        except Refusal as refusal:
            problem, word = refusal, table.Cell("left alone", "red")
        rows.append((table.Cell("would be " + word.text, "yellow") if dry_run else word, path))
        if problem:
            problems.append(problem)
    table.show(table.table(rows))
    for problem in problems:
        refused(problem)
    if problems:
        ctx.exit(BAD)
