"""The figures of the benchmark: a broken limit is seen."""

from __future__ import annotations

from bench import dumps
from bench.figures import added, share, table


def test_differences_of_medians() -> None:
    ours, theirs = [0.012, 0.013, 0.5], [0.010, 0.010, 0.011]
    assert round(added("call", ours, theirs).value, 6) == 3
    assert round(share("life", ours, theirs).value, 6) == 30


def test_limits() -> None:
    figures = [added("call", [0.0121], [0.01], 2.0), share("life", [1.05], [1.0], 10.0), added("told", [1], [1])]
    assert [figure.broken for figure in figures] == [True, False, False]
    first, second, third = table(figures).splitlines()
    assert "+2.10 ms" in first and "BROKEN" in first
    assert "+5.00 %" in second and " ok " in second
    assert "limit" not in third


def test_a_checkpoint_has_four_limits() -> None:
    times = {f"{mode} {what}": ([0.4], [0.3]) for mode in ("running", "paused") for what in ("wall", "frozen")}
    found = dumps.figures("node-a", {**times, "paused phase look": ([0.02], [])})
    assert [(figure.name, figure.limit, figure.broken) for figure in found] == [
        ("node-a: checkpoint, wall time", 200, False), ("node-a: checkpoint, frozen", 60, True),
        ("node-a: checkpoint, paused first, wall time", 200, False),
        ("node-a: checkpoint, paused first, frozen", 60, True), ("  of which look", None, False),
    ]  # fmt: skip
