"""gritctl inspect: what a checkpoint holds, as a tree for people or as JSON."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from grit_runtime import manifest as manifests
from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import images
from grit_runtime.ctl import BAD, OK, checkpoints, table
from grit_runtime.ctl.table import Branch, Cell

LISTED = 30  # children of a branch, unless --all
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
        table.show_json("checkpoint", found)
    else:
        table.show(table.tree(tree(found, everything)))
    ctx.exit(BAD if found["problems"] else OK)


def describe(place: checkpoints.Place) -> dict[str, Any]:
    """Everything that is shown, as JSON has it (gritctl-inspect(1)). What can't be read is a problem."""
    problems = [_problem(place, refusal) for refusal in images.problems(place.images)]
    found: dict[str, Any] = {"path": place.given, "archive": place.archive, "images": place.images}
    found["manifest"] = _try(lambda: _manifest(place.images), place, problems)
    parts: dict[str, Callable[[], Any]] = {
        "inventory": lambda: images.inventory(place.images)._asdict(),
        "processes": lambda: _processes(place),
        "mounts": lambda: _mounts(place.images),
        "files": lambda: _files(place.images),
        "sockets": lambda: [one._asdict() for one in images.sockets(place.images)],
        "watches": lambda: images.watches(place.images),
        "timers": lambda: [one._asdict() for one in images.timers(place.images)],
        "hostname": lambda: images.hostname(place.images),
        "masks": lambda: images.masks(place.images),
        "stats": lambda: stats._asdict() if (stats := _stats(place)) else None,
    }
    for name, part in parts.items():
        found[name] = _try(part, place, problems)
    found["sizes"] = _sizes(place)
    found["problems"] = problems
    return found


def tree(found: dict[str, Any], everything: bool = False) -> Branch:
    """The tree for people."""
    limit = 1 << 30 if everything else LISTED
    branches = [
        *_made(found),
        _process_branch(found, limit, everything),
        _branch("mounts", found["mounts"], _mount_line, limit),
        _branch("open files", _grouped(found["files"]), _file_line, limit, _kinds(found["files"])),
        _branch("sockets", found["sockets"], _socket_line, limit),
        _branch("timers", found["timers"], _timer_line, limit),
        *_gpu(found, limit),
        _branch("sizes", found["sizes"]["parts"], _size_line, limit, table.size(found["sizes"]["total"])),
        _problem_branch(found["problems"]),
    ]
    return Branch(Cell(found["path"], "bold"), [branch for branch in branches if branch])


def _try(part: Callable[[], Any], place: checkpoints.Place, problems: list[dict[str, str]]) -> Any:
    """What `part` gives, or None and a problem."""
    try:
        return part()
    except Refusal as refusal:
        problem = _problem(place, refusal)
        if problem not in problems:
            problems.append(problem)
        return None


def _problem(place: checkpoints.Place, refusal: Refusal) -> dict[str, str]:
    """Names of files without the folder, which is a temporary one for an archive."""
    return {"reason": refusal.reason, "message": refusal.message.replace(f"{place.images}/", "")}


def _manifest(folder: str) -> dict[str, Any] | None:
    """None for images that grit-runtime didn't make: they have no manifest, and that is no problem here."""
    if not os.path.lexists(os.path.join(folder, manifests.NAME)):
        return None
    return manifests.read(folder)


def _stats(place: checkpoints.Place) -> images.Stats | None:
    return images.stats(place.images) or (images.stats(place.home) if place.home else None)


def _processes(place: checkpoints.Place) -> list[dict[str, Any]]:
    result = []
    for task in images.tasks(place.images):
        memory = images.memory(place.images, task.pid) if task.exe else None
        first = task.credentials[0] if task.credentials else None
        result.append(
            {
                "pid": task.pid,
                "parent": task.parent,
                "comm": task.comm,
                "command": [word for word in memory.arguments if word] if memory else [],
                "exe": task.exe,
                "state": task.state,
                "architecture": task.architecture,
                "threads": len(task.threads),
                "uid": first.uid if first else None,
                "gid": first.gid if first else None,
                "capabilities": first.capabilities._asdict() if first else None,
                "no_new_privs": first.no_new_privs if first else None,
                "seccomp": first.seccomp if first else None,
                "lsm": first.lsm if first else None,
                "mapped": memory.mapped if memory else 0,
                "stored": memory.stored if memory else 0,
            }
        )
    return result


def _mounts(folder: str) -> list[dict[str, Any]]:
    rows = []
    for mount in sorted(images.mounts(folder), key=lambda one: one.mountpoint):
        role = "root" if mount.mountpoint == "/" else "mask" if images.mask(mount) else ""
        role = role or ("external" if mount.external else "made anew")
        rows.append({**mount._asdict(), "role": role})
    return rows


def _files(folder: str) -> list[dict[str, Any]]:
    gone = {one.name: one for one in images.remaps(folder)}
    rows = []
    for file in images.open_files(folder):
        deleted = gone[file.name].kind if file.name in gone and file.kind == "file" else None
        row = {"id": file.id, "kind": file.kind, "name": file.name, "size": file.size}
        rows.append({**row, "external": file.external, "deleted": deleted})
    return rows


def _sizes(place: checkpoints.Place) -> dict[str, Any]:
    """Bytes by part: memory, tmpfs contents, other images, rootfs changes, shared memory."""
    parts: Counter[str] = Counter()
    for folder in dict.fromkeys((place.images, place.home)):
        for name in os.listdir(folder):
            facts = os.lstat(os.path.join(folder, name))
            if name.endswith(".img") or name in ("rootfs-diff.tar", "shm.tar"):
                parts[_part(name)] += facts.st_size
    return {"total": sum(parts.values()), "parts": [{"part": k, "bytes": v} for k, v in parts.most_common()]}


def _part(name: str) -> str:
    if name == "rootfs-diff.tar":
        return "rootfs changes"
    if name == "shm.tar":
        return "/dev/shm"
    if name.startswith("pages-"):
        return "memory"
    return "tmpfs and deleted files" if name.startswith(("tmpfs-", "ghost-file-")) else "descriptions"


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
            f"container: {container.get('name') or container.get('id', '?')}",
        ]
    if found["hostname"]:
        lines.append(f"hostname: {found['hostname']}")
    if stats:
        lines.append(f"tasks stood still for {stats['frozen'] / 1000:.0f} ms, {stats['pages_written']} pages written")
    return [Branch(line) for line in lines]


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
        roots.append(Branch(Cell(f"{shown[0] - limit} more", "dim")))
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
    children = [Branch(line(row)) for row in rows[:limit]]
    if len(rows) > limit:
        children.append(Branch(Cell(f"{len(rows) - limit} more", "dim")))
    return Branch(Cell(f"{name}: {extra or len(rows)}", "cyan"), children)


def _grouped(rows: Any) -> list[dict[str, Any]]:
    """Files that look the same as one line, with how often it was opened; sockets have a branch of their own."""
    counted = Counter(_file_text(row) for row in rows or [] if row["kind"] not in ("inet", "timerfd"))
    return [{"text": text, "times": times} for text, times in counted.items()]


def _kinds(rows: Any) -> str:
    counted = Counter(row["kind"] for row in rows or [])
    return ", ".join(f"{number} {kind}" for kind, number in counted.most_common())


def _mount_line(row: dict[str, Any]) -> str:
    key = f" [{row['key']}]" if row["key"] not in ("", row["mountpoint"]) else ""
    return f"{row['mountpoint']} {row['kind']}, {row['role']}{key}"


def _file_line(row: dict[str, Any]) -> str:
    return str(row["text"]) + (f" ({row['times']} times)" if row["times"] > 1 else "")


def _file_text(row: dict[str, Any]) -> str:
    gone = f" (deleted, {row['deleted']}, {table.size(row['size'])})" if row["deleted"] else ""
    return f"{row['kind']} {row['name']}".rstrip() + gone + (" (from outside)" if row["external"] else "")


def _socket_line(row: dict[str, Any]) -> str:
    peer = f" to {_end(row['peer'], row['peer_port'])}" if row["peer_port"] else ""
    return f"{row['protocol']} {row['state']} {_end(row['address'], row['port'])}{peer}".replace("  ", " ")


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _timer_line(row: dict[str, Any]) -> str:
    every = f"every {row['interval'] / 1e9:g} s" if row["interval"] else "once"
    return f"timerfd {every}, {row['remaining'] / 1e9:g} s left" if row["remaining"] else "timerfd, not armed"


def _gpu(found: dict[str, Any], limit: int) -> list[Branch]:
    gpu = (found["manifest"] or {}).get("gpu")
    gpus = gpu.get("gpus", []) if isinstance(gpu, dict) else []
    if not isinstance(gpus, list) or not gpus:
        return []
    rows = [one if isinstance(one, dict) else {} for one in gpus]
    lines = [f"{one.get('name', '?')} {one.get('uuid', '')}" for one in rows]
    return [Branch(Cell(f"GPUs: {len(lines)}", "cyan"), [Branch(line) for line in lines[:limit]])]


def _size_line(row: dict[str, Any]) -> str:
    return f"{row['part']}: {table.size(row['bytes'])}"


def _problem_branch(rows: list[dict[str, str]]) -> Branch:
    if not rows:
        return Branch(Cell("whole: every file that the images promise is there (hashes: gritctl verify)", "green"))
    return Branch(Cell(f"problems: {len(rows)}", "red"), [Branch(f"{r['reason']}: {r['message']}") for r in rows])
