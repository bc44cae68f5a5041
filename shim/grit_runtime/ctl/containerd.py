"""containerd's configuration as text: our handler added to it and taken from it. Nothing here touches the node.

Two layouts are understood: `version = 2` (containerd 1.6, 1.7, and read by 2.x) and `version = 3` (2.x). What was seen
with 1.6.20, 1.7.24 and 2.1.9, by `containerd config dump`, and shapes this module:

- In 1.x an imported file that names the CRI plugin replaces everything that files before it said of the plugin, so
  our entry must go into the last file that names it. 2.x merges files table by table.
- In 1.x, naming any runtime makes the built-in `runc` vanish: a configuration that names none gets `runc` too.
- A file of version 3 beside one of version 2 makes 2.x drop what the latter said of the plugin: one version for all.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from grit_runtime.checks import refuse
from grit_runtime.ctl import toml

PLUGIN = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
RUNC = "io.containerd.runc.v2"
POD_ANNOTATIONS = ["grit.dev/*"]
# The kubelet's restart count tells a container that it restarts from one that it restores: only so is a checkpoint
# used once.
CONTAINER_ANNOTATIONS = ["grit.dev/*", "io.kubernetes.container.restartCount"]
COMMENT = '# Written by "gritctl install", taken away by "gritctl uninstall".\n'
DROPIN = "grit-runtime.toml"
# What our handler takes over from the node's default runtime, beside SystemdCgroup of its options.
INHERITED = (
    "snapshotter",
    "base_runtime_spec",
    "cgroup_writable",
    "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
)


class Handler(NamedTuple):
    """The runtime handler to have: its name in containerd (and in a RuntimeClass) and what it starts."""

    name: str = "grit"
    binary: str = "/usr/bin/grit-runtime"


class File(NamedTuple):
    """A configuration file as it is."""

    path: str
    text: str


class Edit(NamedTuple):
    """A file as it is (`before`: None if there is none) and as it shall be, and how that is undone in a file which
    somebody else has edited since (see `undone`)."""

    path: str
    before: str | None
    after: str
    undo: list[dict[str, Any]]


def version(files: Sequence[File], daemon: tuple[int, ...] | None) -> int:
    """Which layout `files` (the main file first) have, or shall have if they say nothing yet."""
    main = toml.parse(files[0]) if files else {}
    found = main.get("version")
    if isinstance(found, int) and found in PLUGIN:
        return found
    if found is None and not main and daemon:
        return 3 if daemon[0] >= 2 else 2
    path = files[0].path if files else "/etc/containerd/config.toml"
    if (found is None or found == 1) and main:
        raise refuse("containerd-config-old", path=path)
    raise refuse("containerd-config-unknown", path=path, why=f"its version is {found}")


def effective(files: Sequence[File], layout: int, daemon: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The table `containerd` of the CRI plugin as the daemon will see it, {} if nobody names it."""
    merging = layout == 3 or (daemon is not None and daemon[0] >= 2)
    table: dict[str, Any] = {}
    for file in files:
        plugin = toml.at(toml.parse(file), ["plugins", PLUGIN[layout]], file.path)
        if plugin is not None:
            new = toml.at(plugin, ["containerd"], file.path) or {}
            table = merge(table, new) if merging else new
    return table


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with `new` laid over it, table by table, as containerd 2.x merges its files."""
    both = dict(old)
    for key, value in new.items():
        mine = both.get(key)
        both[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both


def base(containerd: dict[str, Any]) -> dict[str, Any]:
    """The runtime that ours shall be like: the node's default if it is one of runc's shim, else `runc`, else {}."""
    runtimes = containerd.get("runtimes") or {}
    for name in (containerd.get("default_runtime_name") or "runc", "runc"):
        entry = runtimes.get(name)
        if isinstance(entry, dict) and entry.get("runtime_type") == RUNC:
            return entry
    return {}


def nvidia_binary(containerd: dict[str, Any]) -> str | None:
    """BinaryName of the node's NVIDIA runtime, wherever the GPU operator or nvidia-ctk has put it."""
    for _, entry in sorted((containerd.get("runtimes") or {}).items()):
        binary = (entry.get("options") or {}).get("BinaryName") if isinstance(entry, dict) else None
        if isinstance(binary, str) and posixpath.basename(binary) == "nvidia-container-runtime":
            return binary
    return None


def plan(files: Sequence[File], path: str, daemon: tuple[int, ...] | None, handler: Handler) -> Edit | None:
    """The edit that gives containerd our handler; None if it has it already.

    `files`: the main file, if it exists, and what it imports, in the order in which containerd reads them; `path`:
    where the main file is or would be; `daemon`: containerd's version, None if that is not known.
    Refuses containerd-config-unknown, -old, containerd-cri-disabled, handler-taken.
    """
    layout = version(files, daemon)
    _cri_is_on(files, layout)
    containerd = effective(files, layout, daemon)
    entry = (containerd.get("runtimes") or {}).get(handler.name)
    if entry is not None:
        return _update(files, layout, handler, entry)
    block = ""
    if layout == 2 and (daemon is None or daemon[0] < 2):
        block = _keep_default(files, containerd, layout)
    block += COMMENT + render(layout, handler, base(containerd))
    dropin = _dropin(files, path) if layout == 3 else None
    target = next((file for file in files if file.path == dropin), None) if dropin else _target(files, layout)
    keys = ["plugins", PLUGIN[layout], "containerd", "runtimes", handler.name]
    if target is None:
        text = f"version = {layout}\n\n{block}"
        return Edit(dropin or path, None, text, [{"text": block, "keys": keys}])
    head = "" if toml.parse(target) else f"version = {layout}\n\n"
    return append(target, head + block, keys)


def render(layout: int, handler: Handler, like: dict[str, Any]) -> str:
    """The tables of our handler, for a runtime that is `like` this one."""
    table = f'plugins."{PLUGIN[layout]}".containerd.runtimes.{handler.name}'
    lines = [
        f"[{table}]",
        f"  runtime_type = {toml.value(RUNC)}",
        f"  pod_annotations = {toml.value(POD_ANNOTATIONS)}",
        f"  container_annotations = {toml.value(CONTAINER_ANNOTATIONS)}",
    ]
    lines += [f"  {key} = {toml.value(like[key])}" for key in INHERITED if like.get(key)]
    lines += [f"  [{table}.options]", f"    BinaryName = {toml.value(handler.binary)}"]
    cgroup = (like.get("options") or {}).get("SystemdCgroup")
    if isinstance(cgroup, bool):
        lines.append(f"    SystemdCgroup = {toml.value(cgroup)}")
    return "\n".join(lines) + "\n"


def append(file: File, block: str, keys: list[str]) -> Edit:
    """`block` at the end of `file`: nothing else in it moves. Where TOML forbids that (the tables above ours are
    written inline, say), the block's value is set with tomlkit. The result must differ from the file by it alone."""
    joint = "" if not file.text or file.text.endswith("\n\n") else "\n" if file.text.endswith("\n") else "\n\n"
    text = file.text + joint + block
    wanted = merge(toml.parse(file), toml.parse(File(file.path, block)))
    if toml.same(text, wanted):
        return Edit(file.path, file.text, text, [{"text": joint + block, "keys": keys}])
    text = toml.set_value(file, keys, toml.at(wanted, keys, file.path))
    if not toml.same(text, wanted):
        raise refuse("containerd-config-unknown", path=file.path, why="an entry can't be added without changing others")
    return Edit(file.path, file.text, text, [{"keys": keys}])


def undone(file: File, undo: list[dict[str, Any]]) -> str:
    """`file`, in which others may have edited, without what our edits put there (`undo`: the last edit first).

    A step with `text` cuts that text out; if it isn't there as we wrote it, what is at `keys` is taken away. A step
    with `new` puts `old` (None: nothing) at `keys`, if what is there is still `new`.
    """
    for step in undo:
        if "text" in step and step["text"] in file.text:
            file = File(file.path, file.text.replace(step["text"], "", 1))
        elif step["keys"]:
            there = toml.at(toml.parse(file), step["keys"], file.path)
            if "new" in step and there == step["new"]:
                file = File(file.path, toml.set_value(file, step["keys"], step["old"]))
            elif "new" not in step and there is not None:
                file = File(file.path, toml.without_table(file, step["keys"]).replace(COMMENT, ""))
    return file.text


def _cri_is_on(files: Sequence[File], layout: int) -> None:
    for file in files:
        off = toml.parse(file).get("disabled_plugins") or []
        if isinstance(off, list) and {"cri", "io.containerd.grpc.v1.cri", PLUGIN[layout]} & {str(p) for p in off}:
            raise refuse("containerd-cri-disabled", path=file.path)


def _keep_default(files: Sequence[File], containerd: dict[str, Any], layout: int) -> str:
    """What 1.x needs so that its default runtime survives our entry."""
    default = containerd.get("default_runtime_name") or "runc"
    if default in (containerd.get("runtimes") or {}):
        return ""
    if default != "runc":
        path = files[0].path if files else ""
        raise refuse("containerd-config-unknown", path=path, why=f"its default runtime {default} is not in it")
    table = f'plugins."{PLUGIN[layout]}".containerd.runtimes.runc'
    why = "# containerd 1.x has its built-in runc only while no runtime is named.\n"
    return f"{COMMENT}{why}[{table}]\n  runtime_type = {toml.value(RUNC)}\n\n"


def _target(files: Sequence[File], layout: int) -> File | None:
    """The existing file that the entry goes into; None if there is none."""
    naming = [f for f in files if toml.at(toml.parse(f), ["plugins", PLUGIN[layout]], f.path) is not None]
    if layout == 2 and naming:
        return naming[-1]
    return files[0] if files else None


def _dropin(files: Sequence[File], path: str) -> str | None:
    """Where a file of ours would be imported from, if the main file imports what lies in some folder."""
    imports = toml.parse(files[0]).get("imports") if files else None
    for pattern in imports if isinstance(imports, list) else []:
        folder, name = posixpath.split(posixpath.join(posixpath.dirname(path), str(pattern)))
        if re.search(r"[*?\[]", name) and not re.search(r"[*?\[]", folder) and fnmatchcase(DROPIN, name):
            return posixpath.join(folder, DROPIN)
    return None


def _update(files: Sequence[File], layout: int, handler: Handler, entry: Any) -> Edit | None:
    """Bring a handler that is there to what it shall be; what else is said in it stays."""
    if not isinstance(entry, dict) or entry.get("runtime_type", RUNC) != RUNC:
        kind = entry.get("runtime_type") if isinstance(entry, dict) else "unknown"
        raise refuse("handler-taken", handler=handler.name, type=kind, path=files[0].path)
    keys = ["plugins", PLUGIN[layout], "containerd", "runtimes", handler.name]
    file = [f for f in files if toml.has(f, keys)][-1]
    mine = toml.at(toml.parse(file), keys, file.path) or {}
    wanted = {
        ("runtime_type",): RUNC,
        ("pod_annotations",): _with(entry.get("pod_annotations"), POD_ANNOTATIONS),
        ("container_annotations",): _with(entry.get("container_annotations"), CONTAINER_ANNOTATIONS),
        ("options", "BinaryName"): handler.binary,
    }
    text, undo = file.text, []
    for key, value in wanted.items():
        if toml.at(entry, list(key), file.path) != value:
            text = toml.set_value(File(file.path, text), [*keys, *key], value)
            old = toml.at(mine, list(key), file.path)
            undo.append({"keys": [*keys, *key], "old": old, "new": value})
    return Edit(file.path, file.text, text, undo[::-1]) if undo else None


def _with(present: object, needed: list[str]) -> list[str]:
    there = [str(p) for p in present] if isinstance(present, list) else []
    return there + [p for p in needed if p not in there]
