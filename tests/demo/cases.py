"""The demo's runs: pure values, and what each must come to."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One move. `program`: "counter" (with memory) or "everything". `generation` 2: of a restored container."""

    program: str
    source: str
    target: str
    with_us: bool
    generation: int = 1
    leave_running: bool = False

    @property
    def title(self) -> str:
        extra = ", leave running" if self.leave_running else ", second generation" if self.generation == 2 else ""
        where = "same node" if self.source == self.target else "other node"
        return f"{self.program}, {self.source} to {where}{extra}"


A, B = "node-a", "node-b"

WITHOUT = [Case(program, source, target, False) for program in ("counter", "everything") for source, target in
           ((A, B), (B, A))]  # fmt: skip

# Each group is one container's life: a later case takes up what the one before it restored.
WITH = [
    [Case("counter", A, B, True)],
    [Case("counter", B, A, True)],
    [Case("counter", A, A, True)],
    [Case("counter", B, B, True)],
    [Case("everything", A, B, True), Case("everything", B, A, True, generation=2)],
    [Case("everything", B, A, True), Case("everything", A, B, True, generation=2)],
    [Case("everything", A, A, True)],
    [Case("everything", B, B, True)],
    [Case("everything", A, B, True, leave_running=True)],
    [Case("everything", B, A, True, leave_running=True)],
]

# What a team's nodes showed: (program, step) to CRIU's words. A run without us must fail so, and at no other place.
FAILURES = {
    "counter": ("restore", "No mapping for "),
    "everything": ("checkpoint", "fsnotify: Can't dump that handle"),
}


class Run(NamedTuple):
    """What a case came to; the fields of build/demo.json. Times are seconds; None: it did not come so far."""

    case: Case
    checkpointed: bool = False
    restored: bool = False
    check: dict[str, object] | None = None
    error: str | None = None
    seconds: dict[str, float] | None = None

    def row(self) -> dict[str, object]:
        """The entry in build/demo.json."""
        check = self.check or {}
        seconds = {name: round((self.seconds or {}).get(name, 0.0), 2) for name in ("checkpoint", "copy", "restore")}
        names = ("memory_sha256_equal", "counter_gap", "watches", "watches_same_number", "watches_delivering")
        return {
            "program": self.case.program,
            "from": self.case.source,
            "to": self.case.target,
            "with_grit_runtime": self.case.with_us,
            "generation": self.case.generation,
            "leave_running": self.case.leave_running,
            "checkpointed": self.checkpointed,
            "restored": self.restored,
            **{name: check.get(name) for name in names},
            "bad": check.get("bad"),
            "error": self.error,
            "seconds": seconds,
        }

    @property
    def as_expected(self) -> bool:
        """With us: the same process goes on with all it had. Without us: it fails where and as the table says."""
        if self.case.with_us:
            return self.restored and self.error is None and self.check is not None and self.check["bad"] == []
        step, words = FAILURES[self.case.program]
        there = self.checkpointed if step == "restore" else not self.checkpointed
        return there and not self.restored and self.error is not None and words in self.error
