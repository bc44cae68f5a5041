"""The command line of gritctl: a group whose commands are imported when they are called, and not before."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from grit_runtime import VERSION
from grit_runtime.checks import Refusal
from grit_runtime.ctl import BAD, UNKNOWN, table

# name on the command line -> (module in this package, what it does). `--help` reads only this.
COMMANDS = {
    "check": ("check", "Say whether a running container can be checkpointed."),
    "diagnose": ("diagnose", "Explain a failed checkpoint or restore."),
    "inspect": ("inspect", "Show what a checkpoint holds."),
    "verify": ("verify", "Say whether a checkpoint is whole, unchanged, and fits this node."),
    "logs": ("logs", "List or print the kept logs of checkpoints and restores."),
    "recover": ("recover", "Undo what an operation that died has left behind."),
    "doctor": ("doctor", "Say whether this node is ready."),
    "gpu-test": ("gpu_test", "Checkpoint and restore GPU memory, and compare it."),
    "install": ("install", "Add the runtime handler to what runs containers here."),
    "uninstall": ("uninstall", "Take back what install has done."),
}


class Commands(click.Group):
    """Finds commands by the table above; turns a Refusal into one line on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (module, _) in COMMANDS.items() if find_spec(f"{__package__}.{module}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__package__}.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name][1]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Refusal as refusal:
            refused(refusal)
            ctx.exit(BAD)
        except PermissionError as error:
            hint = "" if os.geteuid() == 0 else ". Run it as root"
            fail(f"not-permitted: {error.filename or 'the kernel'}: {error.strerror}{hint}")
            ctx.exit(UNKNOWN)


def fail(text: str) -> None:
    """One line on stderr, whatever `text` holds."""
    click.echo(f"gritctl: {table.visible(text)}", err=True)


def refused(refusal: Refusal) -> None:
    """A refusal as one line on stderr: reason, what is wrong, what to do."""
    fail(f"{refusal.reason}: {refusal.message}. {table.sentence(refusal.remedy)}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(VERSION, "-V", "--version", message="gritctl %(version)s")
def main() -> None:
    """Check, explain and set up checkpoint and restore of GPU containers.

    Exit status: 0 ready or done, 1 refused or wrong, 2 could not be determined.
    """
    # names of files and commands are bytes to us; a terminal that can't show one must not end us
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
