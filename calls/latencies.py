"""How fast calls were, over time, by what carried them, and which were the slowest.

Each call has counted its durations by BINS_S (calls/events.py). Counts add up, so what is told of a period is told of
all turns or frames in it, not of the middle of its calls. A quantile is as fine as the bins are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Literal

from sqlalchemy import and_, desc, func, select

from calls.events import BINS_S, HOPS, TURNS
from calls.store import Store
from calls.store_writes import clean
from calls.tables import Call, CallMeasure

MEASURED = (*TURNS, *HOPS)
PERIODS = {"hour": (3600, 300), "day": (86_400, 3600), "week": (7 * 86_400, 6 * 3600), "month": (30 * 86_400, 86_400)}
# by name: its seconds, and those of each of its steps
MOST_CALLS = 20_000  # the newest of a period
WORST = 10

Carrier = Literal["protocol", "agent", "worker"]
CARRIERS: tuple[Carrier, ...] = ("protocol", "agent", "worker")


@dataclass(frozen=True)
class Wanted:
    """One measure of the calls of a period: of all, or of those that were carried so."""

    measure: str = "response"
    period: str = "day"
    protocol: str = ""
    agent: str = ""
    worker: str = ""


@dataclass(frozen=True)
class Spread:
    """How often durations were so long, by BINS_S."""

    bins: tuple[int, ...] = (0,) * (len(BINS_S) + 1)

    @classmethod
    def of_all(cls, spreads: Iterable[Spread]) -> Spread:
        return cls(tuple(map(sum, zip(*(each.bins for each in spreads), strict=True))) or cls().bins)

    @property
    def count(self) -> int:
        return sum(self.bins)

    def quantile(self, share: float) -> float | None:
        """Where this share of them is below, as if they lay evenly within their bin; those of the last bin count as its
        lower bound. None where there are none."""
        wanted = share * self.count
        below = (0, *accumulate(self.bins))
        for bin, many in enumerate(self.bins):
            if many and below[bin + 1] >= wanted:
                low, high = bounds_s(bin)
                return low if math.isinf(high) else low + (high - low) * (wanted - below[bin]) / many
        return None


def bounds_s(bin: int) -> tuple[float, float]:
    return ((0.0, *BINS_S)[bin], (*BINS_S, math.inf)[bin])


@dataclass(frozen=True)
class Moment:
    """A step of the period that begins at `at`."""

    at: datetime
    calls: int
    spread: Spread


@dataclass(frozen=True)
class Carried:
    """Calls of one transport, agent or worker."""

    by: Carrier
    name: str
    calls: int
    spread: Spread


@dataclass(frozen=True)
class Slow:
    call: str
    received_at: datetime
    protocol: str
    agent: str
    worker: str
    count: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True)
class Report:
    wanted: Wanted
    since: datetime
    until: datetime
    calls: int  # MOST_CALLS: there may be more
    spread: Spread
    moments: tuple[Moment, ...]
    carried: tuple[Carried, ...]
    worst: tuple[Slow, ...]  # by their 95th percentile


async def report(store: Store, wanted: Wanted, now: datetime | None = None) -> Report:
    """Raises StoreError; a measure and a period that there are."""
    length_s, step_s = PERIODS[wanted.period]
    until = now or datetime.now(UTC)
    first_s = math.floor(until.timestamp() / step_s) * step_s - length_s + step_s
    since = datetime.fromtimestamp(first_s, UTC)
    those = _measured(wanted, since, until)
    sums = [func.sum(those.c.bins[bin + 1]) for bin in range(len(BINS_S) + 1)]
    step = func.floor((func.extract("epoch", those.c.received_at) - first_s) / step_s)
    carriers = [those.c[name] for name in CARRIERS]
    async with store.transaction() as connection:
        over_time = (await connection.execute(select(step, func.count(), *sums).group_by(step))).all()
        by_carrier = (await connection.execute(
            select(*carriers, func.count(), *sums).group_by(*carriers))).all()
        worst = (await connection.execute(
            select(those.c.id, those.c.received_at, *carriers, those.c.count, those.c.p50_s, those.c.p95_s)
            .order_by(desc(those.c.p95_s), desc(those.c.received_at)).limit(WORST))).all()
    told = {int(row[0]): (int(row[1]), _spread(row[2:])) for row in over_time}
    moments = tuple(Moment(since + timedelta(seconds=at * step_s), *told.get(at, (0, Spread())))
                    for at in range(length_s // step_s))
    return Report(wanted, since, until, sum(calls for calls, _ in told.values()),
                  Spread.of_all(spread for _, spread in told.values()), moments, tuple(_carried(by_carrier)),
                  tuple(Slow(row[0], row[1], row[2] or "", row[3] or "", row[4] or "", row[5], row[6], row[7])
                        for row in worst))


def _measured(wanted: Wanted, since: datetime, until: datetime) -> Any:
    """The calls, with what was measured of them."""
    calls = select(Call.id, Call.received_at, *(getattr(Call, name) for name in CARRIERS)).where(
        Call.answered_at.is_not(None), Call.received_at >= since, Call.received_at <= until)
    for name in CARRIERS:
        if value := getattr(wanted, name):
            calls = calls.where(getattr(Call, name) == clean(value))
    newest = calls.order_by(desc(Call.received_at), desc(Call.id)).limit(MOST_CALLS).subquery()
    measure = and_(CallMeasure.call_id == newest.c.id, CallMeasure.name == wanted.measure)
    return (select(newest, CallMeasure.count, CallMeasure.p50_s, CallMeasure.p95_s, CallMeasure.bins)
            .join(CallMeasure, measure).where(CallMeasure.bins.is_not(None)).cte("those"))


def _carried(rows: Iterable[Any]) -> Iterable[Carried]:
    """What each transport, agent and worker has carried, the most first."""
    found: dict[tuple[Carrier, str], list[tuple[int, Spread]]] = defaultdict(list)
    for row in rows:
        for by, name in zip(CARRIERS, row[:3], strict=True):
            found[by, name or ""].append((int(row[3]), _spread(row[4:])))
    carried = [Carried(by, name, sum(calls for calls, _ in parts), Spread.of_all(spread for _, spread in parts))
               for (by, name), parts in found.items()]
    return sorted(carried, key=lambda one: (CARRIERS.index(one.by), -one.calls, one.name))


def _spread(counts: Sequence[Any]) -> Spread:
    return Spread(tuple(map(int, counts)))
