"""The cgroups of a run: one group a node in every hierarchy of the host, and all that the node makes below it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class Hierarchy(NamedTuple):
    """A mounted hierarchy. `options` are those of mount(8), "" for version 2."""

    mount: Path
    options: str


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The cgroup hierarchies in a /proc/PID/mountinfo, each once. Mounts of a part of one (root not /) are left out."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        root, mount = head.split(" ")[3:5]
        if kind == "cgroup2" and root == "/":
            found.setdefault("", Hierarchy(Path(mount), ""))
        elif kind == "cgroup" and root == "/":
            words = [word for word in options.split(",") if word not in ("rw", "ro", "xattr", "clone_children")]
            words = [word for word in words if not word.startswith("release_agent=")]
            named = [word for word in words if word.startswith("name=")]
            text = "none," + named[0] if named else ",".join(words)
            found.setdefault(text, Hierarchy(Path(mount), text))
    return list(found.values())


def here() -> list[Hierarchy]:
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def make(name: str) -> list[str]:
    """Makes the group `name` in all hierarchies. Gives the files to write a pid to, so that it belongs to the node."""
    entries = []
    for mount, options in here():
        group = mount / name
        group.mkdir(exist_ok=True)
        if "cpuset" in options.split(","):  # a new cpuset of version 1 is empty, and nothing can run in it
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group / file).write_text((mount / file).read_text())
        if not options:
            _hand_on(mount)
        entries.append(str(group / "cgroup.procs"))
    return entries


def _hand_on(root: Path) -> None:
    for controller in (root / "cgroup.controllers").read_text().split():
        try:
            (root / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            pass  # on a host that keeps it for itself the node goes without


def inner(entries: list[str]) -> list[str]:
    """As `make` gave them, but for processes that come later: in version 2 they belong into the child `init`."""
    second = {str(hierarchy.mount) for hierarchy in here() if not hierarchy.options}
    return [
        str(Path(entry).with_name("init") / "cgroup.procs") if str(Path(entry).parents[1]) in second else entry
        for entry in entries
    ]


def groups(prefix: str) -> list[Path]:
    """All groups at the top of a hierarchy whose names begin with `prefix`."""
    return sorted(group for mount, _ in here() for group in mount.glob(prefix + "*") if group.is_dir())


def below(group: Path) -> list[Path]:
    """`group` and all groups in it, the innermost first."""
    return [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]


def members(top: list[Path]) -> set[int]:
    pids: set[int] = set()
    for group in top:
        for folder in below(group):
            try:
                # 0 stands for a process that this pid namespace does not see
                pids.update({int(pid) for pid in (folder / "cgroup.procs").read_text().split()} - {0})
            except OSError:
                pass  # gone meanwhile, or a threaded group
    return pids


def remove(prefix: str, limit: float = 30) -> list[str]:
    """Ends every process in the groups that begin with `prefix` and removes them; gives what could not be removed."""
    end = time.monotonic() + limit
    while True:
        top = groups(prefix)
        if not top:
            return []
        _thaw(top)
        for pid in members(top):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for group in top:
            for folder in below(group):
                try:
                    folder.rmdir()
                except OSError:
                    pass  # still has members: once more
        if time.monotonic() > end:
            return [f"cgroup {group}" for group in groups(prefix)]
        time.sleep(0.02)


def _thaw(top: list[Path]) -> None:
    """A process in a frozen group of version 1 does not die before it is thawed."""
    for group in top:
        for folder in reversed(below(group)):
            state = folder / "freezer.state"
            try:
                if state.exists() and state.read_text().strip() != "THAWED":
                    state.write_text("THAWED")
            except OSError:
                pass
