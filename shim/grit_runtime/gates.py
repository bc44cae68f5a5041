"""What stands between the node that made a checkpoint and this one: pure comparisons, each refused by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from grit_runtime.checks import Refusal, refuse

# Flags of the hypervisor, of power management and of the kernel's mitigations, which no program is built for.
_UNTOLD = """
    hypervisor arch_perfmon constant_tsc nonstop_tsc tsc_reliable tsc_known_freq tsc_adjust tsc_deadline_timer ibrs
    ibpb stibp ssbd md_clear flush_l1d arch_capabilities ibrs_enhanced pti vmx svm ept vpid tpr_shadow flexpriority
    vnmi aperfmperf cpuid rep_good nopl xtopology monitor epb cpuid_fault dtherm ida arat pln pts hwp
"""


def node(theirs: dict[str, Any], ours: dict[str, str]) -> list[Refusal]:
    """The manifest's `node` against this node's facts (`manifest.node()` with `criu` and `runtime` added)."""
    found = []
    if theirs["arch"] != ours["arch"]:
        return [refuse("arch-mismatch", theirs=theirs["arch"], ours=ours["arch"])]
    missing = sorted(set(theirs["cpu"].split()) - set(ours["cpu"].split()) - set(_UNTOLD.split()))
    if missing:
        found.append(refuse("cpu-mismatch", missing=" ".join(missing)))
    if version(theirs["criu"]) > version(ours["criu"]):
        found.append(refuse("criu-older", theirs=theirs["criu"], ours=ours["criu"]))
    if theirs["runtime"] != ours["runtime"]:
        found.append(refuse("runtime-differs", theirs=theirs["runtime"], ours=ours["runtime"]))
    return found


def version(text: str) -> tuple[int, ...]:
    """`4.2.1` as numbers; what isn't a number ends it."""
    parts: list[int] = []
    for part in text.split("."):
        if not part.isdigit() or len(part) > 9:
            break
        parts.append(int(part))
    return tuple(parts)


def files(theirs: dict[str, Any], ours: dict[str, str | None]) -> list[Refusal]:
    """The manifest's fingerprints against those of the same paths here; None stands for a file that isn't there."""
    found = []
    for path, value in sorted(theirs.items()):
        if path in ours and ours[path] is None:
            found.append(refuse("file-missing", path=path))
        elif path in ours and ours[path] != value:
            found.append(refuse("file-differs", path=path))
    return found


def first(refusals: Iterable[Refusal], allow: Collection[str] = ()) -> list[Refusal]:
    """Raise the first refusal whose reason may not be passed; those that may."""
    passed = []
    for refusal in refusals:
        if refusal.reason not in allow:
            raise refusal
        passed.append(refusal)
    return passed
