"""What doctor needs to know of this node, gathered in one place; nothing here judges."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from typing import NamedTuple

from grit_runtime import chain, settings
from grit_runtime.checks import Refusal
from grit_runtime.criu import features
from grit_runtime.ctl import proof, recover, targets, toml
from grit_runtime.ctl.changes import read
from grit_runtime.ctl.containerd import File, Handler
from grit_runtime.cuda import hugepages

PARTS = (
    "/usr/bin/grit-runtime",
    "/usr/libexec/grit-runtime/criu-action",
    "/usr/libexec/grit-runtime/noop-runtime",
    "/usr/share/grit-runtime/criu.conf",
)
MODULES = ("click", "tomlkit", "pyroute2", "prctl")
SERVICES = ("containerd", "dockerd", "crio")  # by their names in /proc/PID/comm; k3s and RKE2 start a containerd
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


class Gpu(NamedTuple):
    """One GPU, as nvidia-smi names it."""

    name: str
    memory: int  # bytes
    persistence: bool
    mig: bool


class Toolkit(NamedTuple):
    """The NVIDIA Container Toolkit's configuration: `mode` and the low-level `runtimes` that it tries in turn."""

    path: str
    mode: str
    runtimes: list[str]


class Folder(NamedTuple):
    """A folder that checkpoints come from or go to. `safe`: root's, and nobody else can write there."""

    path: str
    free: int  # bytes
    safe: bool


class Facts(NamedTuple):
    """The node. A Refusal stands where something could not be had; `gpus` is None when nvidia-smi doesn't answer."""

    root: bool
    settings: settings.Settings | Refusal
    next: str | Refusal
    low: chain.Flavour | Refusal
    nvidia: str | None  # nvidia-container-runtime's path
    toolkit: Toolkit | None
    driver: str  # "" if no NVIDIA driver is loaded
    gpus: list[Gpu] | None
    cuda_binary: bool
    criu: features.Criu
    kernel: str
    huge_pages: str  # always, madvise, never
    targets: list[targets.Target]
    folders: list[Folder]
    missing: list[str]
    pending: list[str]
    foreign: list[tuple[str, str]]  # (service, its locale) where Perl complains about that
    libcriu: bool
    capabilities: int  # CapEff, a bit for each of capability.h


def gather() -> Facts:
    """Look at this node."""
    known = _settings()
    used = settings.Settings() if isinstance(known, Refusal) else known
    following = _next(used)
    has_driver = targets.has_gpu("")
    return Facts(
        root=os.geteuid() == 0,
        settings=known,
        next=following,
        low=following if isinstance(following, Refusal) else _flavour(following),
        nvidia=targets.nvidia_here(""),
        toolkit=toolkit(used.nvidia.config, read("", used.nvidia.config)),
        driver=driver_version(read("", "/proc/driver/nvidia/version") or "") or ("unknown" if has_driver else ""),
        gpus=_gpus() if has_driver else [],
        cuda_binary=bool(shutil.which(used.cuda.binary)),
        criu=features.features(),
        kernel=os.uname().release,
        huge_pages=chosen(read("", THP) or ""),
        targets=[target for target in targets.find("", None, Handler(), None) if target.name != "grit-runtime"],
        folders=[folder for folder in map(_folder, [*used.restore.roots, "/var/lib/grit-runtime"]) if folder],
        missing=[path for path in PARTS if not os.path.exists(path)]
        + [f"the Python module {name}" for name in MODULES if not find_spec(name)],
        pending=left_behind() if os.geteuid() == 0 else [],
        foreign=foreign_locales(),
        libcriu=bool(glob.glob("/usr/lib/*/libcriu.so.2") + glob.glob("/usr/lib*/libcriu.so.2")),
        capabilities=capabilities(read("", "/proc/self/status") or ""),
    )


def left_behind() -> list[str]:
    """What `gritctl recover` would undo."""
    pages = [hugepages.STATE] if hugepages.owed() else []
    return recover.dead_operations() + recover.dead_markers() + pages


def foreign_locales() -> list[tuple[str, str]]:
    """The services that call us with a locale that isn't installed: Perl, our entry's language, then says so on
    stderr, amid what the runtime answers."""
    found: dict[tuple[str, str], None] = {}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{folder}/comm") as file:
                name = file.read().strip()
            if name not in SERVICES:
                continue
            with open(f"{folder}/environ", "rb") as file:
                entries = file.read().split(b"\0")
        except OSError:
            continue
        environment = locale_of(os.fsdecode(entry) for entry in entries)
        if proof.complains(["/usr/bin/perl", "-e", "1"], environment):
            locale = environment.get("LC_ALL") or environment.get("LANG") or "/".join(sorted(environment))
            found[name, locale] = None
    return list(found)


def locale_of(environment: Iterable[str]) -> dict[str, str]:
    """What Perl looks at of an environment, when it starts."""
    pairs = (entry.partition("=") for entry in environment)
    return {name: value for name, _, value in pairs if name.startswith("LC_") or name in ("LANG", "PERL_BADLANG")}


def driver_version(text: str) -> str:
    """The version in /proc/driver/nvidia/version: its line NVRM names the module, then the number."""
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return found[1] if found else ""


def capabilities(text: str) -> int:
    """CapEff of a /proc/PID/status; 0 if it isn't there."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return int(found[1], 16) if found else 0


def chosen(text: str) -> str:
    """The word in brackets, as sysfs marks the choice made: `always [madvise] never`."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def toolkit(path: str, text: str | None) -> Toolkit | None:
    """The toolkit's configuration; None if there is none or it can't be read."""
    if text is None:
        return None
    try:
        table = toml.parse(File(path, text)).get("nvidia-container-runtime") or {}
        return Toolkit(path, str(table.get("mode", "auto")), [str(name) for name in table.get("runtimes", [])])
    except (Refusal, AttributeError, TypeError):
        return None


def gpus(csv: str) -> list[Gpu]:
    """From `nvidia-smi --query-gpu=name,memory.total,persistence_mode,mig.mode.current`: MiB, no head, no units."""
    found = []
    for line in csv.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            size = int(fields[1]) << 20 if fields[1].isdecimal() else 0
            found.append(Gpu(fields[0], size, fields[2] == "Enabled", fields[3] == "Enabled"))
    return found


def _gpus() -> list[Gpu] | None:
    query = "--query-gpu=name,memory.total,persistence_mode,mig.mode.current"
    said = proof.output(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    return None if said is None else gpus(said)


def _settings() -> settings.Settings | Refusal:
    try:
        return settings.load()
    except Refusal as refusal:
        return refusal


def _next(used: settings.Settings) -> str | Refusal:
    try:
        return chain.next_runtime(used)
    except Refusal as refusal:
        return refusal


def _flavour(runtime: str) -> chain.Flavour | Refusal:
    try:
        return chain.flavour(runtime)
    except Refusal as refusal:
        return refusal


def _folder(path: str) -> Folder | None:
    try:
        found, space = os.stat(path), os.statvfs(path)
    except OSError:
        return None
    return Folder(path, space.f_bavail * space.f_frsize, found.st_uid == 0 and not found.st_mode & 0o022)
