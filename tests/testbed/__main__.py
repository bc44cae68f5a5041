"""usage: python -m tests.testbed build | up | down [TAG] | shell NODE [-- CMD...] | list | leaks | clean

build   builds the nodes' trees and images (cached in .nodes)
up      brings both nodes up, prints the run's tag, and leaves them up in the background until `down`
shell   runs CMD (default: bash) in NODE (a or b) of the latest run that `up` made; without one, in nodes of its own
        (another run than the latest: GRIT_RUN=TAG)
list    the runs of this checkout that live, with their nodes' first processes
leaks   what runs that are dead left; exit code 1 if there is something
clean   ends all runs of this checkout and removes the cache"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import build, groups, images, runs
from .places import CHECKOUT, NODES, PREFIX, RUNS


def main(words: list[str]) -> int:
    command, rest = (words or ["--help"])[0], words[1:]
    if command == "guard":
        return runs.guard(rest[0])
    if command == "build":
        images.build(build.build()["node-a"])
        return 0
    if command == "up":
        return up()
    if command == "keep":
        return keep()
    if command == "down":
        return down(rest)
    if command == "shell" and rest:
        return shell(rest[0], [word for word in rest[1:] if word != "--"] if rest[1:2] != ["--"] else rest[2:])
    if command == "list":
        for tag in runs.tags():
            if runs.alive(tag):
                kept = " (up)" if (RUNS / tag / "keeper").exists() else ""
                print(f"{tag}{kept}", *(f"{path.parent.name}={path.read_text()}" for path in first_pids(tag)))
        return 0
    if command == "leaks":
        left = [leak for tag in runs.tags() if not runs.alive(tag) for leak in runs.leaks(tag)]
        print("\n".join(left) or "nothing leaked")
        return 1 if left else 0
    if command == "clean":
        return clean()
    print(__doc__)
    return 0 if command in ("--help", "-h", "help") else 2


def first_pids(tag: str) -> list[Path]:
    return sorted((RUNS / tag).glob("*/pid"))


def up() -> int:
    """A keeper in the background owns the run; its first line says that it is up."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.testbed", "keep"],
        cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert child.stdout
    tag = child.stdout.readline().decode().strip()
    print(tag)
    return 0 if tag else 1


def keep() -> int:
    from .bed import Testbed

    debs = sorted((CHECKOUT / "build").glob("grit-runtime_*.deb"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Testbed(deb=debs[-1] if debs else None) as bed:
        (bed.run.folder / "keeper").write_text(str(os.getpid()))
        print(bed.tag, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        while True:
            signal.pause()


def kept() -> list[str]:
    """Living runs that `up` made, the oldest first."""
    files = sorted(RUNS.glob("*/keeper"), key=lambda path: path.stat().st_mtime)
    return [path.parent.name for path in files if runs.alive(path.parent.name)]


def down(which: list[str]) -> int:
    tags = which or kept()
    if len(tags) > 1 and not which:
        print(f"which one? {' '.join(tags)}", file=sys.stderr)
        return 2
    for tag in tags:
        try:
            os.kill(int((RUNS / tag / "keeper").read_text()), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            print(f"no run {tag} is up", file=sys.stderr)
            return 1
        end = time.monotonic() + 60
        while runs.leaks(tag):
            if time.monotonic() > end:
                print(f"{tag} left: {runs.leaks(tag)}", file=sys.stderr)
                return 1
            time.sleep(0.05)
    return 0


def shell(name: str, argv: list[str]) -> int:
    from .bed import Testbed

    tags = kept()
    if tags:
        from .node import attach

        node = attach(os.environ.get("GRIT_RUN") or tags[-1], f"node-{name[-1]}")
        return subprocess.call(node.command(argv or ["bash"]), env={**os.environ, "LANG": "C.UTF-8"})
    with Testbed() as bed:
        node = bed.a if name[-1] == "a" else bed.b
        return subprocess.call(node.command(argv or ["bash"]), env={**os.environ, "LANG": "C.UTF-8"})


def clean() -> int:
    for tag in kept():
        down([tag])
    for tag in runs.tags():
        if not runs.alive(tag):
            runs.clean(tag)
    living = [tag for tag in runs.tags() if runs.alive(tag)]
    if living:
        print(f"these runs are in use: {' '.join(living)}", file=sys.stderr)
        return 1
    shutil.rmtree(NODES, ignore_errors=True)
    return 1 if NODES.exists() or groups.groups(PREFIX) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
