"""Calls as people look for them: filtered, searched, those that run, and where the time of the last ones went."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import desc, exists, func, select, tuple_
from sqlalchemy.dialects.postgresql import aggregate_order_by, distinct_on

from calls.paging import cursor, place
from calls.searching import has, has_part, is_rare
from calls.store import CALL_QUERY, CallRow, Match, Store, checked_limit
from calls.store_writes import clean
from calls.tables import Call, CallMeasure, Utterance

LAST_CALLS = 500  # of which latencies are told
RUNNING = "running"  # in a filter: no reason of an end yet


@dataclass(frozen=True)
class CallFilter:
    """Which calls: those of a transport, that ended so (or `running`), in which somebody spoke, or said these words
    (quotes, `or` and `-` as in web searches), received from `since` on and before `until`; of `caller` and `callee` a
    part is enough."""

    protocol: str = ""
    reason: str = ""
    said: bool = False
    words: str = ""
    direction: str = ""
    agent: str = ""
    worker: str = ""
    caller: str = ""
    callee: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Listed:
    """A call of a list, and the first of its utterances that a search has found."""

    call: CallRow
    match: Match | None

    @property
    def cursor(self) -> str:
        """What comes after it begins here."""
        return cursor(self.call.received_at, self.call.id)


@dataclass(frozen=True)
class Latency:
    """A measure over calls: the middle of their medians, of their 95th percentiles, and the worst of these with its
    call."""

    protocol: str
    name: str
    calls: int
    p50_s: float
    p95_s: float
    worst_s: float
    worst_call: str


class Reports:
    """Reads from Postgres. Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def calls(self, wanted: CallFilter, limit: int = 50, before: str | None = None) -> tuple[Listed, ...]:
        """The newest calls first; `before`: those that come after the call with this cursor. Raises BadCursor."""
        limit = checked_limit(limit)
        after = place(before, datetime, str) if before is not None else None
        async with self._store.transaction() as connection:
            rare = bool(wanted.words) and await is_rare(connection, wanted.words)
            query = _filtered(wanted, rare).order_by(desc(Call.received_at), desc(Call.id)).limit(limit)
            if after is not None:
                query = query.where(tuple_(Call.received_at, Call.id) < tuple_(*after))
            rows = [CallRow(*row) for row in await connection.execute(query)]
            found: dict[str, Match] = {}
            if wanted.words and rows:
                first = _first_match(wanted.words, [row.id for row in rows])
                found = {row[0]: Match(*row) for row in await connection.execute(first)}
        return tuple(Listed(row, found.get(row.id)) for row in rows)

    async def unended(self, limit: int = 200) -> tuple[CallRow, ...]:
        """Calls of whose end nothing is known, the newest first: they run, or their bridge has died."""
        query = (CALL_QUERY.where(Call.ended_at.is_(None)).order_by(desc(Call.received_at), desc(Call.id))
                 .limit(checked_limit(limit)))
        async with self._store.transaction() as connection:
            return tuple(CallRow(*row) for row in await connection.execute(query))

    async def abandoned(self, alive: Collection[str], limit: int = 200) -> tuple[CallRow, ...]:
        """Of those, the ones that none of these bridges carries, the oldest first."""
        query = (CALL_QUERY.where(Call.ended_at.is_(None), Call.bridge.is_not(None), Call.bridge.not_in(sorted(alive)))
                 .order_by(Call.received_at, Call.id).limit(checked_limit(limit)))
        async with self._store.transaction() as connection:
            return tuple(CallRow(*row) for row in await connection.execute(query))

    async def latency(self, calls: int = LAST_CALLS) -> tuple[Latency, ...]:
        """Of the last calls that were answered, by transport and measure."""
        last = (select(Call.id, Call.protocol).where(Call.answered_at.is_not(None), Call.protocol.is_not(None))
                .order_by(desc(Call.received_at), desc(Call.id)).limit(checked_limit(calls)).subquery())
        worst_call = func.array_agg(aggregate_order_by(CallMeasure.call_id, CallMeasure.p95_s.desc()))
        query = (
            select(last.c.protocol, CallMeasure.name, func.count(), _middle(CallMeasure.p50_s),
                   _middle(CallMeasure.p95_s), func.max(CallMeasure.p95_s), worst_call)
            .join(last, last.c.id == CallMeasure.call_id)
            .where(CallMeasure.p50_s.is_not(None), CallMeasure.p95_s.is_not(None))
            .group_by(last.c.protocol, CallMeasure.name).order_by(last.c.protocol, CallMeasure.name))
        async with self._store.transaction() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(Latency(row[0], row[1], row[2], row[3], row[4], row[5], row[6][0]) for row in rows)


def _filtered(wanted: CallFilter, rare: bool = False) -> Any:
    query = CALL_QUERY
    for column, value in ((Call.protocol, wanted.protocol), (Call.direction, wanted.direction),
                          (Call.agent, wanted.agent), (Call.worker, wanted.worker)):
        if value:
            query = query.where(column == clean(value))
    for column, value in ((Call.caller, wanted.caller), (Call.callee, wanted.callee)):
        if value:
            query = query.where(has_part(column, value))
    if wanted.since is not None:
        query = query.where(Call.received_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(Call.received_at < wanted.until)
    if wanted.reason == RUNNING:
        query = query.where(Call.ended_at.is_(None))
    elif wanted.reason:
        query = query.where(Call.end_reason == clean(wanted.reason))
    if wanted.said:
        query = query.where(exists().where(Utterance.call_id == Call.id, Utterance.text != ""))
    if wanted.words:
        found = select(Utterance.call_id).where(has(wanted.words))
        if rare:
            found = select(found.cte("found").prefix_with("MATERIALIZED", dialect="postgresql").c.call_id)
        query = query.where(Call.id.in_(found))
    return query


def _first_match(words: str, calls: Collection[str]) -> Any:
    """Of each of these calls; their utterances are looked through without the index, which would find all others."""
    there = (select(Utterance.call_id, Call.received_at, Utterance.speaker, Utterance.first_k, Utterance.start_s,
                    Utterance.text, Utterance.tsv).join(Call).where(Utterance.call_id.in_(calls))
             .cte("there").prefix_with("MATERIALIZED", dialect="postgresql"))
    return (select(there.c.call_id, there.c.received_at, there.c.speaker, there.c.first_k, there.c.start_s,
                   there.c.text).where(has(words, there.c.tsv))
            .ext(distinct_on(there.c.call_id)).order_by(there.c.call_id, there.c.first_k))


def _middle(column: Any) -> Any:
    return func.percentile_cont(0.5).within_group(column)
