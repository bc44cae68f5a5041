"""What on this node starts containers, and the edit that each needs: plans from texts, and the reading of those texts.

`root` is put before every path: "" on a node, a folder in tests.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from grit_runtime.checks import Refusal, refuse
from grit_runtime.ctl import containerd, proof, toml
from grit_runtime.ctl.changes import read
from grit_runtime.ctl.containerd import Edit, File, Handler

MAIN = "/etc/containerd/config.toml"
OURS = "/etc/grit-runtime/config.toml"
GRIT = "/etc/containerd/grit.toml"
PODMAN = "/etc/containers/containers.conf"
PODMAN_DROPIN = "/etc/containers/containers.conf.d/grit-runtime.conf"
RANCHER = {"k3s": "/var/lib/rancher/k3s", "RKE2": "/var/lib/rancher/rke2"}
TEMPLATE = {2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}
# Where nvidia-container-runtime is: the distribution's package, the GPU operator.
NVIDIA = ("/usr/bin/nvidia-container-runtime", "/usr/local/nvidia/toolkit/nvidia-container-runtime")
RUNC = ("/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc", "/usr/bin/crun")


class Target(NamedTuple):
    """Something that can have the handler. `edit` is None when it has it already, or when `problem` is in the way."""

    name: str
    path: str
    edit: Edit | None
    problem: Refusal | None = None
    restart: str = ""  # what must be restarted to see the edit
    prove: Callable[[], None] | None = None


def find(root: str, config: str | None, handler: Handler, wanted_next: str | None) -> list[Target]:
    """All targets on this node. `config`: containerd's configuration file, if it isn't in its usual place."""
    found = []
    main = config or MAIN
    program = _program("containerd") if not root else None
    if config or program or read(root, main) is not None:
        prove = proof.prover(program, main, handler) if program else None
        made = _target("containerd", main, lambda: plan_containerd(root, main, program, handler), "containerd", prove)
        found.append(made)
    for name, folder in RANCHER.items():
        if os.path.isdir(root + folder):
            place = f"{folder}/agent/etc/containerd"
            found.append(_target(name, place, partial(plan_rancher, root, place, handler), name.lower()))
    if read(root, GRIT) is not None or (not root and _program("containerd-shim-grit-v1")):
        found.append(_target("GRIT", GRIT, lambda: plan_grit(read(root, GRIT), handler)))
    if any(_runs(root, path) for path in ("/usr/bin/podman", "/usr/local/bin/podman")):
        found.append(_target("podman", PODMAN_DROPIN, lambda: plan_podman(_podman_files(root), handler)))
    if read(root, OURS) is not None:
        found.append(_target("grit-runtime", OURS, lambda: plan_next(root, wanted_next, nvidia_here(root, main))))
    return found


def _target(
    name: str,
    path: str,
    plan: Callable[[], Edit | None],
    restart: str = "",
    prove: Callable[[], None] | None = None,
) -> Target:
    try:
        edit = plan()
    except Refusal as problem:
        return Target(name, path, None, problem)
    return Target(name, edit.path if edit else path, edit, None, restart, prove)


def plan_containerd(root: str, main: str, program: str | None, handler: Handler) -> Edit | None:
    """See `containerd.plan`."""
    return containerd.plan(gather(root, main), main, proof.daemon(program) if program else None, handler)


def gather(root: str, main: str) -> list[File]:
    """containerd's main file and what it imports, each once, in the order in which containerd reads them."""
    files: list[File] = []
    waiting = [main]
    while waiting:
        path = waiting.pop(0)
        text = read(root, path)
        if text is None or any(file.path == path for file in files):
            continue
        file = File(path, text)
        files.append(file)
        imports = toml.parse(file).get("imports")
        for pattern in imports if isinstance(imports, list) else []:
            full = os.path.normpath(os.path.join(os.path.dirname(path), str(pattern)))
            waiting += [found[len(root) :] for found in sorted(glob.glob(root + full))]
    return files


def plan_rancher(root: str, folder: str, handler: Handler) -> Edit | None:
    """k3s and RKE2 render config.toml from a template of their own, or from the admin's beside it; newer ones import a
    folder in version 3. The rendered file tells which layout, and what the default runtime is like."""
    rendered = read(root, f"{folder}/config.toml")
    if rendered is None:
        raise refuse("k3s-not-started", path=f"{folder}/config.toml")
    files = gather(root, f"{folder}/config.toml")
    layout = containerd.version(files, None)
    path = f"{folder}/{TEMPLATE[layout]}"
    template = read(root, path)
    if template is None and layout == 3:
        edit = containerd.plan(files, f"{folder}/config.toml", None, handler)
        if edit is None or edit.path != f"{folder}/config.toml":
            return edit  # it is there already, or goes into the imported folder
    like = containerd.base(containerd.effective(files, layout))
    return plan_template(path, template, layout, handler, like)


def plan_template(path: str, text: str | None, layout: int, handler: Handler, like: dict[str, Any]) -> Edit | None:
    """Our entry at the end of a Go template (which is no TOML, so it is only ever added to and cut out)."""
    block = containerd.COMMENT + containerd.render(layout, handler, like)
    if text is None:
        return Edit(path, None, '{{ template "base" . }}\n\n' + block, [{"text": block, "keys": []}])
    there = re.search(rf"""runtimes\.["']?{re.escape(handler.name)}["']?\s*\]""", text)
    if there and handler.binary in text:
        return None
    if there:
        raise refuse("handler-taken", handler=handler.name, path=path, type="unknown, in a template")
    joint = "" if text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    return Edit(path, text, text + joint + block, [{"text": joint + block, "keys": []}])


def plan_grit(text: str | None, handler: Handler) -> Edit | None:
    """GRIT's own shim reads which runtime to call from BinaryName in its file."""
    line = f"BinaryName = {toml.value(handler.binary)}\n"
    if text is None:
        return Edit(GRIT, None, line, [{"text": line, "keys": []}])
    file = File(GRIT, text)
    now = toml.parse(file).get("BinaryName")
    if now == handler.binary:
        return None
    if now is None:
        return Edit(GRIT, text, line + text, [{"text": line, "keys": []}])
    undo = {"keys": ["BinaryName"], "old": now, "new": handler.binary}
    return Edit(GRIT, text, toml.set_value(file, ["BinaryName"], handler.binary), [undo])


def plan_podman(files: list[File], handler: Handler) -> Edit | None:
    """A file of ours in containers.conf's folder, so that `podman --runtime grit` finds us; see containers.conf(5)."""
    for file in files:
        runtimes = toml.at(toml.parse(file), ["engine", "runtimes"], file.path) or {}
        if handler.binary in (runtimes.get(handler.name) or []):
            return None
        if handler.name in runtimes:
            raise refuse("handler-taken", handler=handler.name, path=file.path, type=str(runtimes[handler.name]))
    text = f"{containerd.COMMENT}[engine.runtimes]\n{handler.name} = {toml.value([handler.binary])}\n"
    ours = next((file for file in files if file.path == PODMAN_DROPIN), None)
    if ours:
        return containerd.append(ours, text, ["engine", "runtimes", handler.name])
    return Edit(PODMAN_DROPIN, None, text, [{"text": text, "keys": ["engine", "runtimes", handler.name]}])


def _podman_files(root: str) -> list[File]:
    patterns = ("/usr/share/containers/containers.conf", PODMAN, os.path.dirname(PODMAN_DROPIN) + "/*.conf")
    paths = [found[len(root) :] for pattern in patterns for found in sorted(glob.glob(root + pattern))]
    return [File(path, read(root, path) or "") for path in paths]


def plan_next(root: str, wanted: str | None, nvidia: str | None) -> Edit | None:
    """Our own configuration: the runtime that was asked for; else, when the one that stands there is missing, one that
    isn't: NVIDIA's if the node has it, runc or crun if it has no GPU."""
    file = File(OURS, read(root, OURS) or "")
    now = toml.at(toml.parse(file), ["runtime", "next"], OURS)
    new = wanted or choose_next(next_of(file.text), nvidia, has_gpu(root), lambda path: _runs(root, path))
    if wanted and not _runs(root, wanted):
        raise refuse("next-runtime-missing", path=wanted)
    if new is None or new == now:
        return None
    undo = {"keys": ["runtime", "next"], "old": now, "new": new}
    return Edit(OURS, file.text, toml.set_value(file, ["runtime", "next"], new), [undo])


def next_of(text: str) -> str:
    """The next runtime that our configuration's `text` names."""
    return str(toml.at(toml.parse(File(OURS, text)), ["runtime", "next"], OURS) or NVIDIA[0])


def choose_next(now: str, nvidia: str | None, gpu: bool, runs: Callable[[str], bool]) -> str | None:
    """The next runtime to have; None to leave `now`, since it runs.

    Refuses nvidia-toolkit-missing (on a node with a GPU) and next-runtime-missing.
    """
    if runs(now):
        return None
    if nvidia:
        return nvidia
    if gpu:
        raise refuse("nvidia-toolkit-missing")
    plain = next((path for path in RUNC if runs(path)), None)
    if plain is None:
        raise refuse("next-runtime-missing", path=now)
    return plain


def nvidia_here(root: str, main: str = MAIN) -> str | None:
    """The node's nvidia-container-runtime: as containerd is told to call it, or where it usually is."""
    named = None
    try:
        files = gather(root, main)
        if files:
            named = containerd.nvidia_binary(containerd.effective(files, containerd.version(files, None)))
    except Refusal:
        pass
    return next((path for path in (named, *NVIDIA) if path and _runs(root, path)), None)


def has_gpu(root: str) -> bool:
    """Whether the NVIDIA driver runs here."""
    return os.path.exists(root + "/dev/nvidiactl") or os.path.exists(root + "/proc/driver/nvidia/version")


def chain_problem(next_runtime: str, gpu: bool, nvidia: str | None) -> Refusal | None:
    """The classic mistake: a node with GPUs whose containers come to plain runc, and so get none."""
    plain = os.path.basename(os.path.realpath(next_runtime)) in ("runc", "crun")
    if plain and (gpu or nvidia):
        return refuse("chain-plain-runc", next=next_runtime, nvidia=nvidia or NVIDIA[0])
    return None


def _runs(root: str, path: str) -> bool:
    if "/" not in path:
        return bool(shutil.which(path))
    return os.path.isfile(root + path) and os.access(root + path, os.X_OK)


def _program(name: str) -> str | None:
    return shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
