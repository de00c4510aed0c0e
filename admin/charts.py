"""What charts draw: SVG's coordinates, in a square of 100 by 100 that the page stretches (pure)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from calls.latencies import Moment, Spread, bounds_s

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LEAST_BARS = 8
_STEPS = (1, 2, 3, 4, 5, 6, 8, 10)  # of what is round, by powers of ten


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    low_s: float
    high_s: float | None  # none: and above
    count: int


@dataclass(frozen=True)
class Histogram:
    bars: tuple[Bar, ...]
    most: int

    @property
    def low_s(self) -> float:
        return self.bars[0].low_s

    @property
    def high_s(self) -> float | None:
        return self.bars[-1].high_s


def histogram(spread: Spread) -> Histogram | None:
    """From the first bin in which something lies to the last; each is as wide as the others, whatever its bounds. None
    where there is nothing."""
    there = [bin for bin, count in enumerate(spread.bins) if count]
    if not there:
        return None
    first, last = there[0], there[-1]
    while last - first + 1 < LEAST_BARS:
        first, last = max(0, first - 1), min(len(spread.bins) - 1, last + 1)
    most, width = max(spread.bins), 100 / (last - first + 1)
    bars = []
    for place, bin in enumerate(range(first, last + 1)):
        (low_s, high_s), count = bounds_s(bin), spread.bins[bin]
        height = 100 * count / most
        bars.append(Bar(round(place * width, 2), round(100 - height, 2), round(0.94 * width, 2), round(height, 2),
                        low_s, None if math.isinf(high_s) else high_s, count))
    return Histogram(tuple(bars), most)


@dataclass(frozen=True)
class Line:
    """A quantile over time: where it goes on, as SVG's path."""

    name: str
    path: str


@dataclass(frozen=True)
class Lines:
    lines: tuple[Line, ...]
    top_s: float
    since: datetime
    until: datetime


def lines(moments: Sequence[Moment], until: datetime) -> Lines | None:
    """The quantiles of each step; a step of which nothing is known is a gap. None where there is nothing."""
    values = {name: [moment.spread.quantile(share) for moment in moments] for name, share in QUANTILES.items()}
    known = [value for each in values.values() for value in each if value is not None]
    if not known:
        return None
    top_s = _round_up(max(known))
    return Lines(tuple(Line(name, _path(each, top_s)) for name, each in values.items()), top_s, moments[0].at, until)


def _path(values: Sequence[float | None], top_s: float) -> str:
    """Each run of known ones as a line; of a single one, which has no length, a round cap makes a dot."""
    step, parts = 100 / len(values), []
    for is_known, run in groupby(enumerate(values), key=lambda each: each[1] is not None):
        if is_known:
            points = [f"{round((at + 0.5) * step, 2):g} {round(100 - 100 * (value or 0) / top_s, 2):g}"
                      for at, value in run]
            parts.append(f"M{points[0]}L{' '.join(points[1:] or points)}")
    return "".join(parts)


def _round_up(value_s: float) -> float:
    """The next round number of milliseconds."""
    ms = max(1.0, 1000 * value_s)
    power = 10.0 ** math.floor(math.log10(ms))
    return next(step * power for step in _STEPS if step * power >= ms * (1 - 1e-9)) / 1000
