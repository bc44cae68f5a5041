"""What containerd itself says of its configuration: `containerd config dump`, before and after an edit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

from grit_runtime.checks import Refusal, refuse
from grit_runtime.ctl import containerd
from grit_runtime.ctl.containerd import File, Handler


def daemon(program: str) -> tuple[int, ...] | None:
    """containerd's version, like (1, 7, 24); None if it doesn't tell."""
    found = re.search(r"\sv?(\d+)\.(\d+)\.(\d+)", output([program, "--version"]) or "")
    return tuple(int(part) for part in found.groups()) if found else None


def dump(program: str, main: str) -> dict[str, Any] | str:
    """The table `containerd` of the CRI plugin as the daemon itself reads its configuration, or why it can't."""
    argv = [program, "--config", main, "config", "dump"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"
    file = File("'containerd config dump'", done.stdout.decode("utf-8", "replace"))
    try:
        return containerd.effective([file], containerd.version([file], None))
    except Refusal as refusal:
        return refusal.message


def proved(before: dict[str, Any] | str, after: dict[str, Any] | str, handler: Handler) -> str | None:
    """What is wrong with containerd's own view `after` an edit; None if nothing is."""
    if isinstance(after, str):
        return after
    runtimes = after.get("runtimes") or {}
    entry = runtimes.get(handler.name) or {}
    if (entry.get("options") or {}).get("BinaryName") != handler.binary:
        return f"no handler {handler.name} with {handler.binary}"
    old = before.get("runtimes") or {} if isinstance(before, dict) else {}
    lost = sorted(old.keys() - runtimes.keys())
    if lost:
        return f"the runtimes {', '.join(lost)} would be lost"
    default = after.get("default_runtime_name") or "runc"
    if default not in runtimes:
        return f"the default runtime {default} would be lost"
    return None


def prover(program: str, main: str, handler: Handler) -> Callable[[], None]:
    """Something to call after an edit: refuses containerd-not-proved if containerd doesn't see what it should."""
    before = dump(program, main) if os.path.exists(main) else {}

    def prove() -> None:
        why = proved(before, dump(program, main), handler)
        if why:
            raise refuse("containerd-not-proved", path=main, why=why)

    return prove


def complains(argv: list[str], environment: dict[str, str]) -> bool:
    """Whether a program writes to stderr with nothing but `environment`."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, env=environment)
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(done.stderr)


def output(argv: list[str]) -> str | None:
    """What a program prints; None if it fails or takes longer than a minute."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
