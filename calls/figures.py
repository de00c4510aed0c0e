"""Figures over all calls, for those who watch a service: how calls ended, and how fast the last ones were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from calls.store import Store
from calls.tables import Call, CallMeasure

LAST_S = 300.0  # in which a call has ended whose times count


@dataclass(frozen=True)
class Figures:
    """`ended`: calls by protocol and reason, ever. `times`: by protocol and measure, over the calls that ended in the
    last LAST_S: the means of their p50, p95 and p99, in seconds. `frames`: ever made, dropped, missing."""

    ended: Mapping[tuple[str, str], int]
    times: Mapping[tuple[str, str], tuple[float, float, float]]
    frames: tuple[int, int, int]


async def figures(store: Store) -> Figures:
    """Raises StoreError."""
    ended = (select(Call.protocol, Call.end_reason, func.count()).where(Call.ended_at.is_not(None))
             .group_by(Call.protocol, Call.end_reason))
    recent = Call.ended_at > datetime.now(UTC) - timedelta(seconds=LAST_S)
    times = (select(Call.protocol, CallMeasure.name, func.avg(CallMeasure.p50_s), func.avg(CallMeasure.p95_s),
                    func.avg(CallMeasure.p99_s))
             .join(Call, Call.id == CallMeasure.call_id).where(recent, CallMeasure.p50_s.is_not(None))
             .group_by(Call.protocol, CallMeasure.name))
    frames = select(func.coalesce(func.sum(Call.frames), 0), func.coalesce(func.sum(Call.frames_dropped), 0),
                    func.coalesce(func.sum(Call.frames_missing), 0))
    async with store.transaction() as connection:
        made, dropped, missing = (await connection.execute(frames)).one()
        return Figures(
            ended={(row[0] or "unknown", str(row[1])): row[2] for row in await connection.execute(ended)},
            times={(row[0] or "unknown", row[1]): (row[2], row[3], row[4]) for row in await connection.execute(times)},
            frames=(int(made or 0), int(dropped or 0), int(missing or 0)))
