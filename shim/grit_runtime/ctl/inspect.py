"""gritctl inspect: what a checkpoint holds, as a tree for people or as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from grit_runtime.checks import refuse
from grit_runtime.ctl import BAD, OK, checkpoints, table
from grit_runtime.ctl.contents import describe
from grit_runtime.ctl.logs import short
from grit_runtime.ctl.table import Branch, Cell

LISTED = 12  # children of a branch, unless --all
COMMAND = 60  # characters of a command line, unless --all


@click.command()
@click.argument("checkpoint")
@click.option("--all", "everything", is_flag=True, help="List everything: long branches are cut short otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, always with everything.")
@click.pass_context
def command(ctx: click.Context, checkpoint: str, everything: bool, as_json: bool) -> None:
    """Show what a checkpoint holds.

    CHECKPOINT is its folder, the image folder in it, or an archive (tar, also compressed by gzip). Nothing is changed,
    and no memory is shown. Exits with 1 when the images are not whole; `gritctl verify` checks more.
    """
    with checkpoints.opened(checkpoint) as place:
        if not place.images:
            raise refuse("no-images", path=checkpoint)
        found = describe(place)
    if as_json:
        table.show_json("inspect", found)
    else:
        table.show(table.tree(tree(found, everything)))
    ctx.exit(BAD if found["problems"] else OK)


def tree(found: dict[str, Any], everything: bool = False) -> Branch:
    """The tree for people."""
    limit = 1 << 30 if everything else LISTED
    branches = [
        *_made(found),
        _process_branch(found, limit, everything),
        _mount_branch(found["mounts"], limit),
        _branch("open files", _grouped(found["files"]), _file_line, limit, _kinds(found["files"])),
        _branch("sockets", found["sockets"], _socket_line, limit),
        _branch("timers", found["timers"], _timer_line, limit),
        *_gpu(found, limit),
        _branch("sizes", found["sizes"]["parts"], _size_line, limit, table.size(found["sizes"]["total"])),
        _problem_branch(found["problems"]),
    ]
    return Branch(Cell(found["path"], "bold"), [branch for branch in branches if branch])


def _made(found: dict[str, Any]) -> list[Branch]:
    """When and where it was made."""
    manifest, stats = found["manifest"], found["stats"]
    if not manifest:
        run = found["inventory"]["network_lock"] if found["inventory"] else "?"
        lines = [f"not by grit-runtime: no manifest; network lock {run}"]
    else:
        node, container = manifest["node"], manifest["container"]
        made = manifest.get("created")
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(made)) if isinstance(made, int | float) else "?"
        driver = manifest["gpu"].get("driver") if manifest["gpu"] else None
        lines = [
            f"made: {when} by grit-runtime {manifest.get('grit_runtime', '?')}",
            f"node: {node.get('hostname', '?')}, {node['arch']}, kernel {node['kernel']}, CRIU {node['criu']}, "
            f"{node['runtime']}" + (f", NVIDIA driver {driver}" if driver else ""),
            f"container: {_named(container)}",
        ]
    if found["image"]:
        lines.append(f"image: {found['image']}")
    if found["hostname"]:
        lines.append(f"hostname: {found['hostname']}")
    if stats:
        lines.append(f"tasks stood still for {stats['frozen'] / 1000:.0f} ms, {stats['pages_written']} pages written")
    return [Branch(line) for line in lines]


def _named(container: dict[str, Any]) -> str:
    """NAME (ID), the id shortened as everybody does."""
    name, id = str(container.get("name") or ""), str(container.get("id") or "?")
    return f"{name} ({short(id)})" if name and name != id else id


def _process_branch(found: dict[str, Any], limit: int, everything: bool) -> Branch | None:
    rows = found["processes"]
    if not rows:
        return None
    known = {row["pid"] for row in rows}
    below: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        below.setdefault(row["parent"] if row["parent"] in known - {row["pid"]} else 0, []).append(row)
    shown = [0]
    seen: set[int] = set()

    def grow(parent: int, depth: int) -> list[Branch]:
        result = []
        for row in below.get(parent, []):
            if row["pid"] in seen or depth > 100:
                continue
            seen.add(row["pid"])
            shown[0] += 1
            if shown[0] <= limit:
                result.append(Branch(_process_line(row, everything), grow(row["pid"], depth + 1)))
        return result

    roots = grow(0, 0)
    threads, stored = sum(row["threads"] for row in rows), sum(row["stored"] for row in rows)
    if shown[0] > limit:
        roots.append(Branch(Cell(f"{shown[0] - limit} more, with --all", "dim")))
    return Branch(Cell(f"processes: {len(rows)}, {threads} threads, {table.size(stored)} stored", "cyan"), roots)


def _process_line(row: dict[str, Any], everything: bool) -> str:
    command = " ".join(row["command"]) or row["exe"] or row["comm"]
    if len(command) > COMMAND and not everything:
        command = command[: COMMAND - 3] + "..."
    state = "" if row["state"] == "running" else f" {row['state']}"
    threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
    return f"{row['pid']} {command}{state} ({table.size(row['stored'])}{threads}, uid {row['uid']})"


def _branch(name: str, rows: Any, line: Callable[[dict[str, Any]], str], limit: int, extra: str = "") -> Branch | None:
    if not rows:
        return None
    limit += len(rows) == limit + 1  # the line that says "1 more" can as well be that one
    children = [Branch(line(row)) for row in rows[:limit]]
    if len(rows) > limit:
        children.append(Branch(Cell(f"{len(rows) - limit} more, with --all", "dim")))
    return Branch(Cell(f"{name}: {extra or len(rows)}", "cyan"), children)


def _grouped(rows: Any) -> list[dict[str, Any]]:
    """Files that look the same as one line, with how often it was opened; what tells most comes first, libraries come
    last. Sockets and timers have branches of their own."""
    shown = sorted((row for row in rows or [] if row["kind"] not in ("inet", "timerfd")), key=_interest)
    counted = Counter(_file_text(row) for row in shown)
    return [{"text": text, "times": times} for text, times in counted.items()]


def _interest(row: dict[str, Any]) -> int:
    if row["deleted"] or row["external"]:
        return 0
    if row["kind"] != "file":
        return 2
    return 3 if ".so" in row["name"] or row["name"] == "/" else 1


def _kinds(rows: Any) -> str:
    counted = Counter(row["kind"] for row in rows or [])
    return f"{len(rows or [])} ({', '.join(f'{kind} {number}' for kind, number in counted.most_common())})"


def _mount_branch(rows: Any, limit: int) -> Branch | None:
    """The mounts by their roles, those that a restore needs the same of first."""
    if not rows:
        return None
    order = sorted({row["role"] for row in rows} - {"root", "mask"}, key=lambda role: role != "external")
    kinds = [_branch(role, [r for r in rows if r["role"] == role], _mount_line, limit) for role in order]
    masks = [row["mountpoint"] for row in rows if row["role"] == "mask"]
    branches = [branch for branch in kinds if branch]
    if masks:
        branches.append(Branch(f"masked: {', '.join(masks)}"))
    return Branch(Cell(f"mounts: {len(rows)}", "cyan"), branches)


def _mount_line(row: dict[str, Any]) -> str:
    key = f", key {row['key']}" if row["key"] not in ("", row["mountpoint"]) else ""
    return f"{row['mountpoint']} ({row['kind']}{key})"


def _file_line(row: dict[str, Any]) -> str:
    return str(row["text"]) + (f" ({row['times']} times)" if row["times"] > 1 else "")


def _file_text(row: dict[str, Any]) -> str:
    gone = f" (deleted, {row['deleted']}, {table.size(row['size'])})" if row["deleted"] else ""
    name = row["name"] if row["kind"] == "file" else f"{row['kind']} {row['name']}".rstrip()
    return name + gone + (" (from outside)" if row["external"] else "")


def _socket_line(row: dict[str, Any]) -> str:
    peer = f" to {_end(row['peer'], row['peer_port'])}" if row["peer_port"] else ""
    return f"{row['protocol']} {row['state']} {_end(row['address'], row['port'])}{peer}".replace("  ", " ")


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _timer_line(row: dict[str, Any]) -> str:
    every = f"every {row['interval'] / 1e9:g} s" if row["interval"] else "once"
    return f"timerfd {every}, {row['remaining'] / 1e9:g} s left" if row["remaining"] else "timerfd, not armed"


def _gpu(found: dict[str, Any], limit: int) -> list[Branch]:
    told = (found["manifest"] or {}).get("gpu")
    gpu: dict[str, Any] = told if isinstance(told, dict) else {}
    gpus = gpu.get("gpus", [])
    if not isinstance(gpus, list) or not gpus:
        return []
    rows = [one if isinstance(one, dict) else {} for one in gpus]
    lines = [f"{one.get('model', '?')} {one.get('uuid', '')}" for one in rows]
    used = table.size(taken) if isinstance(taken := gpu.get("taken"), int) else "?"
    return [Branch(Cell(f"GPUs: {len(lines)}, {used} were on them", "cyan"), [Branch(line) for line in lines[:limit]])]


def _size_line(row: dict[str, Any]) -> str:
    return f"{row['part']}: {table.size(row['bytes'])}"


def _problem_branch(rows: list[dict[str, str]]) -> Branch:
    if not rows:
        return Branch(Cell("whole: every file that the images promise is there (hashes: gritctl verify)", "green"))
    return Branch(Cell(f"problems: {len(rows)}", "red"), [Branch(f"{r['reason']}: {r['message']}") for r in rows])
