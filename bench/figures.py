"""A figure and its limit: pure values, and the table that a person reads."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured cost. `limit` in the same unit; None: only told. `how`: from what it was made, for the reader."""

    name: str
    value: float
    unit: str
    limit: float | None
    how: str

    @property
    def broken(self) -> bool:
        return self.limit is not None and self.value > self.limit


def added(name: str, ours: Sequence[float], theirs: Sequence[float], limit: float | None = None) -> Figure:
    """What we add to a time (s), in ms: the median of the differences of pairs that were taken one after the other, so
    that a machine that is slower for a while is so for both.
    """
    mine, plain, more = _medians(ours, theirs)
    how = f"{mine * 1e3:.2f} ms with us, {plain * 1e3:.2f} without, n = {len(ours)}"
    return Figure(name, more * 1e3, "ms", limit, how)


def share(name: str, ours: Sequence[float], theirs: Sequence[float], limit: float | None = None) -> Figure:
    """The same as a share of the time without us, in percent."""
    mine, plain, more = _medians(ours, theirs)
    how = f"{mine * 1e3:.1f} ms with us, {plain * 1e3:.1f} without, n = {len(ours)}"
    return Figure(name, more / plain * 100, "%", limit, how)


def told(name: str, ours: Sequence[float]) -> Figure:
    """A part of our own time (s), in ms: the median, without another side and without a limit."""
    return Figure(name, statistics.median(ours) * 1e3, "ms", None, f"n = {len(ours)}")


def _medians(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    more = statistics.median(mine - plain for mine, plain in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(theirs), more


def table(figures: Iterable[Figure]) -> str:
    """One line a figure: name, value, limit, verdict, and where it comes from."""
    lines = []
    for figure in figures:
        limit = "" if figure.limit is None else f"limit {figure.limit:g} {figure.unit}"
        verdict = "" if figure.limit is None else "BROKEN" if figure.broken else "ok"
        value = f"{figure.value:+.2f} {figure.unit}"
        lines.append(f"{figure.name:<44} {value:>11}  {limit:<13} {verdict:<7} {figure.how}")
    return "\n".join(lines)
