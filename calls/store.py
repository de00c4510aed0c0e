"""Calls in Postgres: the only SQL of the call domain.

`apply` is idempotent and takes events in any order: a row's columns carry the version (fence, sequence) of
the event they come from, and only a greater one writes them. It works on the rows of a call in one fixed
order, calls first, so that two persisters with events of the same calls wait for each other and never
deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import (
    URL,
    Connection,
    create_engine,
    desc,
    event,
    func,
    make_url,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from calls.causes import Outcome, in_words, outcome
from calls.events import (
    Envelope,
    Measure,
    Series,
    Word,
)
from calls.paging import cursor, place
from calls.searching import has, is_rare
from calls.store_writes import advance_watermarks, clean, write_events
from calls.tables import Call, CallControl, CallMeasure, LineEvent, Move, Recording, Utterance
from calls.tables import Word as WordTable
from calls.webhook_outbox import note_deliveries

ANSWER_S = 30.0  # longest wait for one transaction
UPGRADE_WAIT_S = 120  # longest wait for another process that upgrades
MAX_ROWS = 1000  # of one reading
_UPGRADE_LOCK = 0x7A4DE3  # any number, the same in every process


class StoreError(Exception):
    """Something about Postgres; the text is one line."""


class DatabaseAway(StoreError):
    """Postgres can't be reached, or can't answer now: the same may work later."""


class Refused(StoreError):
    """Postgres won't have these values, now or later."""


@dataclass(frozen=True)
class CallRow:
    """A call's row; None where its event hasn't come. `state` is ringing, ready, talking or ended."""

    id: str
    state: str
    received_at: datetime
    protocol: str | None
    direction: str | None
    caller: str | None
    callee: str | None
    reference: str | None
    bridge: str | None
    agent: str | None
    model: str | None
    worker: str | None
    epoch: str | None
    fence: int | None
    answered_at: datetime | None
    codec: str | None
    ended_at: datetime | None
    end_reason: str | None
    ended_by: str | None
    sip_status: int | None
    end_detail: str | None
    frames: int | None
    frames_dropped: int | None
    frames_missing: int | None
    underruns: int | None
    q850: int | None

    @property
    def told(self) -> dict[str, Any]:
        """All that programs are told of it."""
        return asdict(self) | {"why": self.why, "outcome": self.outcome}

    @property
    def why(self) -> str:
        """Why it ended, a sentence for people."""
        return in_words(self.end_reason, self.end_detail, self.sip_status, self.q850)

    @property
    def outcome(self) -> Outcome | None:
        """Of a call that we made."""
        return outcome(self.answered_at is not None, self.end_reason) if self.direction == "outbound" else None


@dataclass(frozen=True)
class UtteranceRow:
    """What one side said; times in seconds since the answer."""

    call: str
    speaker: str
    first_k: int
    last_k: int
    start_s: float | None
    end_s: float | None
    text: str
    final: bool
    words: tuple[Word, ...]


@dataclass(frozen=True)
class RecordingRow:
    """Where a call's sound is kept."""

    call: str
    kept_at: datetime
    url: str
    codec: str
    seconds: float
    bytes: int
    lost_s: float
    paused_s: float


@dataclass(frozen=True)
class ControlRow:
    """What somebody wanted of a call, and what became of it in frames first_k to k."""

    id: str
    action: str
    text: str
    mute: bool
    by: str
    accepted_at: datetime
    outcome: str
    first_k: int
    k: int
    why: str


@dataclass(frozen=True)
class MoveRow:
    """A call went on at another worker after frame k, with the memory of `steps` steps."""

    at: datetime
    worker_before: str
    worker: str
    why: str
    steps: int
    seconds: float
    k: int


@dataclass(frozen=True)
class LineRow:
    """Something happened on a call's telephone line, in frame k; as in calls.events.LineNoted."""

    at: datetime
    what: str
    side: str
    text: str
    via: str
    k: int


@dataclass(frozen=True)
class Match:
    """An utterance that a search found, and when its call was received."""

    call: str
    received_at: datetime
    speaker: str
    first_k: int
    start_s: float | None
    text: str

    @property
    def cursor(self) -> str:
        """What comes after it begins here."""
        return cursor(self.received_at, self.call, self.first_k, self.speaker)


def upgrade(url: str) -> None:
    """Brings the database to the newest version; several processes may do so at once. Raises StoreError."""
    engine = create_engine(_with_driver(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{UPGRADE_WAIT_S}s'"))
            connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            _run_migrations(connection)
    except DBAPIError as error:
        raise _verdict(error) from error
    finally:
        engine.dispose()


def _run_migrations(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class Store:
    """Writing and reading calls. Every method raises DatabaseAway; `apply` also Refused."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(_with_driver(url), pool_size=4, max_overflow=0, pool_timeout=10,
                                           pool_pre_ping=True, connect_args={"connect_timeout": 5})
        event.listen(self._engine.sync_engine, "connect", _prepare)

    async def close(self) -> None:
        await self._engine.dispose()

    async def apply(self, envelopes: Sequence[Envelope], *, skipped: Collection[tuple[Series, int]] = (),
                    floors: Mapping[Series, int] | None = None) -> dict[Series, int]:
        """Writes events in one transaction: each has its effect once, however often and in whatever order it
        comes.

        `skipped` are (series, sequence) of events that were set aside; `floors` give the lowest sequence that
        a producer still holds: what is below it will never come again. Returns for every series in question
        its watermark: the sequence up to which nothing is missing. What comes of a call that was erased counts as
        written.
        """
        floors = floors or {}
        arrived: dict[Series, set[int]] = {series: set() for series in floors}
        for series, sequence in [*((each.series, each.sequence) for each in envelopes), *skipped]:
            arrived.setdefault(series, set()).add(sequence)
        if not arrived:
            return {}
        async with self.transaction() as connection:
            erased = await write_events(connection, envelopes, {series.call for series in arrived})
            kept = [each for each in envelopes if clean(each.call) not in erased]
            await note_deliveries(connection, kept, lambda calls: _told(connection, calls))
            over = {series: max((*sequences, floors.get(series, 1) - 1)) for series, sequences in arrived.items()
                    if clean(series.call) in erased}
            left = {series: sequences for series, sequences in arrived.items() if series not in over}
            return over | (await advance_watermarks(connection, left, floors) if left else {})

    async def call(self, id: str) -> CallRow | None:
        async with self.transaction() as connection:
            row = (await connection.execute(CALL_QUERY.where(Call.id == clean(id)))).first()
        return CallRow(*row) if row else None

    async def calls(self, limit: int = 50, before: str | None = None) -> tuple[CallRow, ...]:
        """The newest calls first; `before`: only those that come after this call's id in that order."""
        query = CALL_QUERY.order_by(desc(Call.received_at), desc(Call.id)).limit(checked_limit(limit))
        if before is not None:
            last = select(Call.received_at, Call.id).where(Call.id == clean(before)).scalar_subquery()
            query = query.where(tuple_(Call.received_at, Call.id) < last)
        async with self.transaction() as connection:
            return tuple(CallRow(*row) for row in await connection.execute(query))

    async def utterances(self, call: str) -> tuple[UtteranceRow, ...]:
        """What was said in a call, with words, in the order in which it began."""
        of_call = Utterance.call_id == clean(call)
        async with self.transaction() as connection:
            rows = (await connection.execute(_UTTERANCES.where(of_call).order_by(
                Utterance.first_k, Utterance.speaker))).all()
            found = await connection.execute(
                select(WordTable.utterance_id, WordTable.text, WordTable.first_k, WordTable.last_k,
                       WordTable.start_s, WordTable.end_s).join(Utterance).where(of_call).order_by(WordTable.position))
            words: dict[int, list[Word]] = {}
            for row in found:
                words.setdefault(row.utterance_id, []).append(
                    Word(row.text, row.first_k, row.last_k, row.start_s, row.end_s))
        return tuple(UtteranceRow(row.call_id, row.speaker, row.first_k, row.last_k, row.start_s, row.end_s,
                                  row.text, row.final, tuple(words.get(row.id, ()))) for row in rows)

    async def recording(self, call: str) -> RecordingRow | None:
        query = select(Recording.call_id, Recording.kept_at, Recording.url, Recording.codec, Recording.seconds,
                       Recording.bytes, Recording.lost_s, Recording.paused_s).where(Recording.call_id == clean(call))
        async with self.transaction() as connection:
            row = (await connection.execute(query)).first()
        return RecordingRow(*row) if row else None

    async def controls(self, call: str) -> tuple[ControlRow, ...]:
        """What was wanted of a call, in the order in which it took effect."""
        query = (select(*(getattr(CallControl, name) for name in ControlRow.__dataclass_fields__))
                 .where(CallControl.call_id == clean(call)).order_by(CallControl.first_k, CallControl.accepted_at))
        async with self.transaction() as connection:
            return tuple(ControlRow(*row) for row in await connection.execute(query))

    async def moves(self, call: str) -> tuple[MoveRow, ...]:
        """How a call went from worker to worker, in its order."""
        query = (select(*(getattr(Move, name) for name in MoveRow.__dataclass_fields__))
                 .where(Move.call_id == clean(call)).order_by(Move.fence))
        async with self.transaction() as connection:
            return tuple(MoveRow(*row) for row in await connection.execute(query))

    async def line_events(self, call: str) -> tuple[LineRow, ...]:
        """Keys, holds, transfers, sound that stopped, in their order."""
        query = (select(*(getattr(LineEvent, name) for name in LineRow.__dataclass_fields__))
                 .where(LineEvent.call_id == clean(call)).order_by(LineEvent.at, LineEvent.sequence))
        async with self.transaction() as connection:
            return tuple(LineRow(*row) for row in await connection.execute(query))

    async def measures(self, call: str) -> dict[str, Measure]:
        """What was measured of a call, by its name."""
        query = select(CallMeasure.name, CallMeasure.count, CallMeasure.total_s, CallMeasure.p50_s, CallMeasure.p95_s,
                       CallMeasure.p99_s, CallMeasure.bins).where(CallMeasure.call_id == clean(call))
        async with self.transaction() as connection:
            return {row[0]: Measure(*row[:-1], tuple(row[-1] or ())) for row in await connection.execute(query)}

    async def search(self, text: str, limit: int = 50, before: str | None = None) -> tuple[Match, ...]:
        """Utterances that hold the words of `text` (quotes, `or` and `-` as in web searches), newest calls
        first; `before`: those that come after the one with this cursor. Raises BadCursor."""
        limit = checked_limit(limit)
        after = place(before, datetime, str, int, str) if before is not None else None
        async with self.transaction() as connection:
            found: Any = select(Utterance.call_id, Utterance.speaker, Utterance.first_k, Utterance.start_s,
                                Utterance.text).where(has(text))
            if await is_rare(connection, text):
                found = found.cte("found").prefix_with("MATERIALIZED", dialect="postgresql")
            else:
                found = found.subquery()
            query = (select(Call.id, Call.received_at, found.c.speaker, found.c.first_k, found.c.start_s, found.c.text)
                     .join(found, found.c.call_id == Call.id)
                     .order_by(desc(Call.received_at), desc(Call.id), found.c.first_k, found.c.speaker).limit(limit))
            if after is not None:
                at, call, first_k, speaker = after
                query = query.where(tuple_(Call.received_at, Call.id) <= tuple_(at, call), or_(
                    Call.id != call, tuple_(found.c.first_k, found.c.speaker) > tuple_(first_k, speaker)))
            return tuple(Match(*row) for row in await connection.execute(query))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, within ANSWER_S. Raises StoreError."""
        try:
            async with asyncio.timeout(ANSWER_S), self._engine.begin() as connection:
                yield connection
        except TimeoutError:
            raise DatabaseAway(f"Postgres didn't answer within {ANSWER_S:g} s") from None
        except (SQLAlchemyError, psycopg.Error, OSError, UnicodeError) as error:
            raise _verdict(error) from error


CALL_QUERY = select(*(getattr(Call, name) for name in CallRow.__dataclass_fields__))
_UTTERANCES = select(Utterance.id, Utterance.call_id, Utterance.speaker, Utterance.first_k, Utterance.last_k,
                     Utterance.start_s, Utterance.end_s, Utterance.text, Utterance.final)


def _prepare(connection: Any, _: object) -> None:
    """A new connection: how fast a search is hangs on its words, so each is planned with them, for tables that lie in
    memory; and what is found in milliseconds waits for no parallel workers to begin."""
    cursor = connection.cursor()
    cursor.execute("SET plan_cache_mode = force_custom_plan")
    cursor.execute("SET random_page_cost = 1.1")
    cursor.execute("SET max_parallel_workers_per_gather = 0")
    cursor.close()
    connection.commit()


async def _told(connection: AsyncConnection, calls: Collection[str]) -> dict[str, Mapping[str, Any]]:
    rows = [CallRow(*row) for row in await connection.execute(CALL_QUERY.where(Call.id.in_(calls)))]
    return {row.id: row.told for row in rows}


def checked_limit(limit: int) -> int:
    if not 1 <= limit <= MAX_ROWS:
        raise ValueError(f"limit: from 1 to {MAX_ROWS} rows, not {limit}")
    return limit


def _with_driver(url: str) -> URL:
    try:
        return make_url(url).set(drivername="postgresql+psycopg")
    except ArgumentError:
        raise StoreError("database URL: not in the form postgresql://user@host/database") from None


def _verdict(error: Exception) -> StoreError:
    cause = getattr(error, "orig", None) or error
    said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    # classes of SQLSTATE: 22 data, 23 integrity, 54 over a limit of the server
    refused = (getattr(cause, "sqlstate", None) or "")[:2] in ("22", "23", "54")
    if refused or isinstance(cause, psycopg.DataError | psycopg.IntegrityError | UnicodeError):
        return Refused(f"Postgres refuses the values: {said}")
    return DatabaseAway(f"Postgres: {said}")
