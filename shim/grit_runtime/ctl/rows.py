"""doctor's judgement: from the facts of a node to rows of a table, each a pure function."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from grit_runtime import settings
from grit_runtime.checks import Refusal, refuse
from grit_runtime.criu import features
from grit_runtime.ctl import table, targets
from grit_runtime.ctl.facts import Facts

GIB = 1 << 30
CAP_SYS_RESOURCE = 24  # linux/capability.h


class Row(NamedTuple):
    """What was looked at; how it is: "ok", "info", "warn", "bad" or "unknown"; if not well, the reason and remedy."""

    check: str
    level: str
    text: str
    reason: str = ""
    remedy: str = ""


def rows(facts: Facts) -> list[Row]:
    """All rows, in the order in which a person reads them."""
    parts = (parts_row, settings_row, *CHAIN, *HANDLERS, *NODE, *NVIDIA, *OWN)
    return [row for part in parts for row in part(facts)]


def parts_row(facts: Facts) -> list[Row]:
    """What the package brings, and the Python modules it depends on."""
    if not facts.missing:
        return [Row("package", "ok", "complete")]
    return [_as("package", "bad", refuse("part-missing", what=what)) for what in facts.missing]


def settings_row(facts: Facts) -> list[Row]:
    path = settings.config_path()
    return [_judged("configuration", facts.settings, path)]


def chain_row(facts: Facts) -> list[Row]:
    """The runtimes from us to the last one, and the two ways in which that can be wrong."""
    if isinstance(facts.next, Refusal):
        return [_as("chain", "bad", facts.next)]
    toolkit = facts.toolkit if os.path.basename(facts.next).startswith("nvidia-") else None
    if toolkit and any(os.path.basename(name) == "grit-runtime" for name in toolkit.runtimes):
        return [_as("chain", "bad", refuse("chain-loop", path=toolkit.path))]
    problem = targets.chain_problem(facts.next, bool(facts.driver), facts.nvidia)
    if problem:
        return [_as("chain", "bad", problem)]
    return [Row("chain", "ok", f"grit-runtime, {facts.next}" + _low(facts))]


def _low(facts: Facts) -> str:
    if isinstance(facts.low, Refusal) or facts.low.name == os.path.basename(str(facts.next)):
        return ""
    return f", {facts.low.name}"


def low_row(facts: Facts) -> list[Row]:
    """runc or crun."""
    if isinstance(facts.low, Refusal):
        return [] if isinstance(facts.next, Refusal) else [_as("runtime", "bad", facts.low)]
    if facts.low.name == "crun" and not facts.libcriu:
        return [_as("runtime", "bad", refuse("libcriu-missing"))]
    if facts.low.name == "unknown":
        return [Row("runtime", "unknown", "the runtime at the chain's end is neither runc nor crun")]
    return [Row("runtime", "ok", f"{facts.low.name} {features.as_text(facts.low.version)}")]


def handler_rows(facts: Facts) -> list[Row]:
    """Whether what starts containers here knows us."""
    found = []
    for target in facts.targets:
        if target.problem:
            found.append(_as(target.name, "warn", target.problem))
        elif target.edit:
            found.append(_as(target.name, "warn", refuse("handler-missing", name=target.name, path=target.path)))
        else:
            found.append(Row(target.name, "ok", f"has the handler ({target.path})"))
    return found or [_as("handler", "warn", refuse("nothing-to-configure"))]


def criu_row(facts: Facts) -> list[Row]:
    """CRIU's version, what `criu check` says, and whether it fits the kernel."""
    criu = facts.criu
    if not criu.path:
        return [_as("CRIU", "bad", refuse("criu-missing"))]
    text = features.as_text(criu.version)
    if criu.version and criu.version < features.MINIMUM:
        return [_as("CRIU", "bad", refuse("criu-too-old", version=text))]
    if criu.version < (4, 2) and release(facts.kernel) >= (6, 16):
        return [_as("CRIU", "bad", refuse("criu-kernel", version=text, kernel=facts.kernel))]
    if criu.check and not facts.root:
        return [_as("CRIU", "unknown", refuse("not-root", what=f"whether CRIU {text} works"))]
    if criu.check:
        return [_as("CRIU", "bad", refuse("criu-check-failed", what=criu.check))]
    return [Row("CRIU", "ok", f"{text}, criu check is content")]


def kernel_row(facts: Facts) -> list[Row]:
    """What we ask of the kernel beyond CRIU: pidfd_getfd (5.6), AT_HANDLE_FID to be sure of a watch's file (6.5)."""
    for needed, level, what in (
        ((5, 6), "bad", "pidfd_getfd"),
        ((6, 5), "warn", "AT_HANDLE_FID, for inotify on overlay"),
    ):
        if release(facts.kernel) < needed:
            wanted = ".".join(map(str, needed))
            return [_as("kernel", level, refuse("kernel-old", kernel=facts.kernel, what=what, needed=wanted))]
    return [Row("kernel", "ok", facts.kernel)]


def rights_row(facts: Facts) -> list[Row]:
    """CAP_SYS_RESOURCE, which root in a container or a small virtual machine may lack."""
    if facts.root and not facts.capabilities >> CAP_SYS_RESOURCE & 1:
        return [_as("rights", "warn", refuse("rights-missing"))]
    return []


def network_row(facts: Facts) -> list[Row]:
    """How connections are held still during a dump."""
    wanted = facts.settings.checkpoint.network_lock if isinstance(facts.settings, settings.Settings) else "auto"
    works = {"iptables": facts.criu.iptables, "nftables": facts.criu.nftables, "skip": True}
    if not facts.criu.path:
        return []
    if wanted == "auto" and facts.criu.network_lock != "skip":
        return [Row("network lock", "ok", f"{facts.criu.network_lock} (auto)")]
    if works.get(wanted):
        return [Row("network lock", "ok" if wanted != "skip" else "info", wanted)]
    problem = refuse("network-lock-missing", wanted=wanted, config=settings.config_path())
    return [_as("network lock", "warn", problem)]


def driver_row(facts: Facts) -> list[Row]:
    """The driver, and what it can do: 570 the driver API, 550 with cuda-checkpoint, 580 other GPUs."""
    if not facts.driver:
        return [Row("NVIDIA driver", "info", "none: containers without GPUs only")]
    number = release(facts.driver)
    if () < number < ((550,) if facts.cuda_binary else (570,)):
        name = facts.settings.cuda.binary if isinstance(facts.settings, settings.Settings) else "cuda-checkpoint"
        return [_as("NVIDIA driver", "bad", refuse("driver-too-old", driver=facts.driver, binary=name))]
    if not number:
        return [Row("NVIDIA driver", "info", "loaded; /proc/driver/nvidia/version doesn't tell which")]
    more = "" if number >= (580,) else "; a restore on GPUs with other UUIDs needs 580"
    return [Row("NVIDIA driver", "ok", facts.driver + more)]


def toolkit_row(facts: Facts) -> list[Row]:
    """The NVIDIA Container Toolkit and its mode."""
    if not facts.driver and not facts.nvidia:
        return []
    if not facts.nvidia:
        return [_as("NVIDIA toolkit", "bad", refuse("nvidia-toolkit-missing"))]
    mode = facts.toolkit.mode if facts.toolkit else "auto"
    if facts.toolkit and mode == "legacy":
        return [_as("NVIDIA toolkit", "bad", refuse("toolkit-legacy", path=facts.toolkit.path))]
    return [Row("NVIDIA toolkit", "ok", f"mode {mode} ({facts.nvidia})")]


def gpu_rows(facts: Facts) -> list[Row]:
    """Each GPU: persistence mode, which the cuda-checkpoint program needs, and MIG, which can't be checkpointed."""
    if facts.gpus is None:
        return [_as("GPU", "warn", refuse("gpu-silent"))]
    found = []
    for number, gpu in enumerate(facts.gpus):
        check = f"GPU {number}"
        if gpu.mig:
            found.append(_as(check, "bad", refuse("gpu-mig", gpu=number)))
        elif not gpu.persistence:
            found.append(_as(check, "warn", refuse("gpu-persistence", gpu=number)))
        else:
            found.append(Row(check, "ok", f"{gpu.name}, {table.size(gpu.memory)}, persistence mode"))
    return found


def huge_pages_row(facts: Facts) -> list[Row]:
    """Transparent huge pages; while GPU memory is copied we switch from madvise to always."""
    if not facts.driver:
        return []
    if facts.huge_pages in ("always", "madvise"):
        return [Row("huge pages", "ok", facts.huge_pages)]
    return [_as("huge pages", "warn", refuse("huge-pages-off", state=facts.huge_pages or "not there"))]


def folder_rows(facts: Facts) -> list[Row]:
    """Room for checkpoints, and that no one but root can write where restores come from."""
    memory = sum(gpu.memory for gpu in facts.gpus or [])
    found = []
    for folder in facts.folders:
        free = table.size(folder.free)
        if not folder.safe:
            found.append(_as("folder", "bad", refuse("root-writable", path=folder.path)))
        elif folder.free < max(GIB, memory):
            level = "bad" if folder.free < GIB else "warn"
            found.append(_as("folder", level, refuse("space-low", path=folder.path, free=free)))
        else:
            found.append(Row("folder", "ok", f"{folder.path}: {free} free"))
    return found


def locale_row(facts: Facts) -> list[Row]:
    """Services whose locale isn't installed."""
    return [_as(name, "warn", refuse("locale-missing", name=name, locale=locale)) for name, locale in facts.foreign]


def pending_row(facts: Facts) -> list[Row]:
    """Operations that died with steps open."""
    if not facts.root:
        return [_as("operations", "unknown", refuse("not-root", what="what operations left behind"))]
    if facts.pending:
        return [_as("operations", "bad", refuse("recovery-needed", count=len(facts.pending)))]
    return [Row("operations", "ok", "none has left anything behind")]


CHAIN = (chain_row, low_row)
HANDLERS = (handler_rows, locale_row)
NODE = (kernel_row, rights_row, criu_row, network_row)
NVIDIA = (driver_row, toolkit_row, gpu_rows, huge_pages_row)
OWN = (folder_rows, pending_row)


def release(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with: "6.18.5-cloud" is (6, 18, 5), "unknown" is ()."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _as(check: str, level: str, refusal: Refusal) -> Row:
    return Row(check, level, refusal.message, refusal.reason, refusal.remedy)


def _judged(check: str, value: Any, text: str) -> Row:
    return _as(check, "bad", value) if isinstance(value, Refusal) else Row(check, "ok", text)
