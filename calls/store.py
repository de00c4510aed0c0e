"""Calls in Postgres: the only SQL of the call domain.

`apply` is idempotent and takes events in any order: a row's columns carry the version (fence, sequence) of
the event they come from, and only a greater one writes them. It works on the rows of a call in one fixed
order, calls first, so that two persisters with events of the same calls wait for each other and never
deadlock.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import (
    URL,
    Connection,
    Table,
    bindparam,
    cast,
    create_engine,
    delete,
    desc,
    func,
    insert,
    make_url,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallMoved,
    CallReceived,
    ControlTaken,
    Envelope,
    Measure,
    RecordingKept,
    Series,
    UtteranceSpoken,
    Word,
)
from calls.tables import Call, CallControl, CallMeasure, EventWatermark, Move, Recording, Utterance, Version
from calls.tables import Word as WordTable

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
class Match:
    """An utterance that a search found, and when its call was received."""

    call: str
    received_at: datetime
    speaker: str
    first_k: int
    start_s: float | None
    text: str


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

    async def close(self) -> None:
        await self._engine.dispose()

    async def apply(self, envelopes: Sequence[Envelope], *, skipped: Collection[tuple[Series, int]] = (),
                    floors: Mapping[Series, int] | None = None) -> dict[Series, int]:
        """Writes events in one transaction: each has its effect once, however often and in whatever order it
        comes.

        `skipped` are (series, sequence) of events that were set aside; `floors` give the lowest sequence that
        a producer still holds: what is below it will never come again. Returns for every series in question
        its watermark: the sequence up to which nothing is missing.
        """
        arrived: dict[Series, set[int]] = {series: set() for series in floors or ()}
        for series, sequence in [*((each.series, each.sequence) for each in envelopes), *skipped]:
            arrived.setdefault(series, set()).add(sequence)
        if not arrived:
            return {}
        async with self.transaction() as connection:
            await _touch_calls(connection, envelopes, {series.call for series in arrived})
            for kind in _CALL_EVENTS:
                await _update_calls(connection, [each for each in envelopes if isinstance(each.event, kind)])
            await _write_utterances(connection, envelopes)
            await _write_measures(connection, envelopes)
            await _write_controls(connection, envelopes)
            await _write_moves(connection, envelopes)
            await _write_recordings(connection, envelopes)
            return await _advance_watermarks(connection, arrived, floors or {})

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

    async def measures(self, call: str) -> dict[str, Measure]:
        """What was measured of a call, by its name."""
        query = select(CallMeasure.name, CallMeasure.count, CallMeasure.total_s, CallMeasure.p50_s, CallMeasure.p95_s,
                       CallMeasure.p99_s).where(CallMeasure.call_id == clean(call))
        async with self.transaction() as connection:
            return {row[0]: Measure(*row) for row in await connection.execute(query)}

    async def search(self, text: str, limit: int = 50) -> tuple[Match, ...]:
        """Utterances that hold the words of `text` (quotes, `or` and `-` as in web searches), newest calls
        first."""
        query = (select(Call.id, Call.received_at, Utterance.speaker, Utterance.first_k, Utterance.start_s,
                        Utterance.text)
                 .join(Call).where(Utterance.tsv.op("@@")(func.websearch_to_tsquery("simple", clean(text))))
                 .order_by(desc(Call.received_at), desc(Call.id), Utterance.first_k).limit(checked_limit(limit)))
        async with self.transaction() as connection:
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


_CALL_TABLE = typing.cast(Table, Call.__table__)
_WATERMARK_TABLE = typing.cast(Table, EventWatermark.__table__)
_CALL_EVENTS = (CallReceived, CallLeased, CallAnswered, CallEnded)
CALL_QUERY = select(*(getattr(Call, name) for name in CallRow.__dataclass_fields__))
_UTTERANCES = select(Utterance.id, Utterance.call_id, Utterance.speaker, Utterance.first_k, Utterance.last_k,
                     Utterance.start_s, Utterance.end_s, Utterance.text, Utterance.final)


async def _touch_calls(connection: AsyncConnection, envelopes: Iterable[Envelope],
                       calls: Iterable[str]) -> None:
    """Makes sure that each call has a row, and locks it."""
    now = datetime.now(UTC)
    first_seen = {clean(call): now for call in calls}
    for each in envelopes:
        first_seen[clean(each.call)] = min(first_seen[clean(each.call)], each.at)
    rows = upsert(Call).values([{"id": call, "received_at": at} for call, at in sorted(first_seen.items())])
    await connection.execute(rows.on_conflict_do_update(
        index_elements=[Call.id], set_={"received_at": rows.excluded.received_at},
        where=Call.received_version.is_(None) & (Call.received_at > rows.excluded.received_at)))


async def _update_calls(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    """Writes the newest of these events, all of one kind, into each call's row."""
    by_call: dict[str, Envelope] = {}
    for each in envelopes:
        if each.call not in by_call or _version(by_call[each.call]) < _version(each):
            by_call[each.call] = each
    if not by_call:
        return
    newest = list(by_call.values())
    version = f"{newest[0].event.kind}_version"
    rows = [{"key": clean(each.call), "newer": _version(each), version: _version(each),
             **_call_columns(each)} for each in newest]
    newer = _newer(getattr(Call, version), bindparam("newer", type_=Version))
    await connection.execute(update(_CALL_TABLE).where(Call.id == bindparam("key"), newer), rows)


def _call_columns(envelope: Envelope) -> dict[str, Any]:
    match envelope.event:
        case CallReceived() as event:
            return {"received_at": envelope.at, "protocol": event.protocol, "direction": event.direction,
                    "caller": clean(event.caller), "callee": clean(event.callee),
                    "reference": clean(event.reference), "bridge": clean(event.bridge),
                    "agent": clean(event.agent)}
        case CallLeased() as event:
            return {"model": clean(event.model), "worker": clean(event.worker),
                    "epoch": clean(event.epoch), "fence": envelope.fence}
        case CallAnswered() as event:
            return {"answered_at": envelope.at, "codec": clean(event.codec)}
        case CallEnded() as event:
            return {"ended_at": envelope.at, "end_reason": event.reason.value, "ended_by": event.side,
                    "sip_status": event.sip_status, "end_detail": clean(event.detail),
                    "frames": event.frames, "frames_dropped": event.frames_dropped,
                    "frames_missing": event.frames_missing, "underruns": event.underruns}
        case event:
            raise TypeError(f"a {event.kind} event has no place in a call's row")


async def _write_utterances(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    """Writes the newest form of each utterance, and its words in place of those of the older form."""
    spoken: dict[tuple[str, str, int], UtteranceSpoken] = {}
    versions: dict[tuple[str, str, int], list[int]] = {}
    for each in envelopes:
        if isinstance(each.event, UtteranceSpoken):
            key = (clean(each.call), each.event.speaker.value, each.event.first_k)
            if versions.get(key, []) < _version(each):
                spoken[key], versions[key] = each.event, _version(each)
    if not spoken:
        return
    rows: Insert = upsert(Utterance).values([
        {"call_id": call, "speaker": speaker, "first_k": first_k, "last_k": event.last_k,
         "start_s": event.words[0].start_s if event.words else None,
         "end_s": event.words[-1].end_s if event.words else None,
         "text": clean(event.text), "final": event.final, "version": versions[call, speaker, first_k]}
        for (call, speaker, first_k), event in sorted(spoken.items(), key=lambda item: item[0])])
    changed = ("last_k", "start_s", "end_s", "text", "final", "version")
    written = (await connection.execute(
        rows.on_conflict_do_update(
            constraint="utterances_key", set_={name: rows.excluded[name] for name in changed},
            where=_newer(Utterance.version, rows.excluded.version))
        .returning(Utterance.id, Utterance.call_id, Utterance.speaker, Utterance.first_k))).all()
    if not written:
        return
    await connection.execute(delete(WordTable).where(WordTable.utterance_id.in_([row.id for row in written])))
    words = [{"utterance_id": id, "position": position, "text": clean(word.text), "first_k": word.first_k,
              "last_k": word.last_k, "start_s": word.start_s, "end_s": word.end_s}
             for id, call, speaker, first_k in written
             for position, word in enumerate(spoken[call, speaker, first_k].words)]
    if words:
        await connection.execute(insert(WordTable), words)


async def _write_measures(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    values = [{"call_id": call, **vars(measure), "name": clean(measure.name), "version": _version(each)}
              for call, each in _newest(envelopes, CallMeasured)
              if isinstance(each.event, CallMeasured) for measure in each.event.measures]
    await _write_newest(connection, CallMeasure, (CallMeasure.call_id, CallMeasure.name), values)


async def _write_controls(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    newest: dict[tuple[str, str], Envelope] = {}
    for each in envelopes:
        if isinstance(each.event, ControlTaken):
            key = clean(each.call), clean(each.event.id)
            if key not in newest or _version(newest[key]) < _version(each):
                newest[key] = each
    values = [{"call_id": call, "id": id, "action": event.action, "text": clean(event.text), "mute": event.mute,
               "by": clean(event.by), "accepted_at": event.accepted_at, "outcome": event.outcome,
               "first_k": event.first_k, "k": event.k, "why": clean(event.why), "version": _version(each)}
              for (call, id), each in sorted(newest.items()) if isinstance(event := each.event, ControlTaken)]
    await _write_newest(connection, CallControl, (CallControl.call_id, CallControl.id), values)


async def _write_moves(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    """Each has a fence of its own, under which it happens once."""
    moves = {(clean(each.call), each.fence): each for each in envelopes if isinstance(each.event, CallMoved)}
    values = [{"call_id": call, "fence": fence, "at": each.at, "worker_before": clean(event.worker_before),
               "worker": clean(event.worker), "why": clean(event.why), "steps": event.steps, "seconds": event.seconds,
               "k": event.k, "version": _version(each)}
              for (call, fence), each in sorted(moves.items()) if isinstance(event := each.event, CallMoved)]
    await _write_newest(connection, Move, (Move.call_id, Move.fence), values)


async def _write_recordings(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    values = [{"call_id": call, "kept_at": each.at, "url": clean(event.url), "codec": event.codec,
               "seconds": event.seconds, "bytes": event.bytes, "lost_s": event.lost_s, "paused_s": event.paused_s,
               "version": _version(each)}
              for call, each in _newest(envelopes, RecordingKept)
              if isinstance(event := each.event, RecordingKept)]
    await _write_newest(connection, Recording, (Recording.call_id,), values)


def _newest(envelopes: Iterable[Envelope], kind: type) -> list[tuple[str, Envelope]]:
    """The last event of a kind of each call, in the calls' order."""
    newest: dict[str, Envelope] = {}
    for each in envelopes:
        if isinstance(each.event, kind):
            call = clean(each.call)
            if call not in newest or _version(newest[call]) < _version(each):
                newest[call] = each
    return sorted(newest.items(), key=lambda item: item[0])


async def _write_newest(connection: AsyncConnection, table: type[CallMeasure | CallControl | Move | Recording],
                        key: Sequence[Any], values: Sequence[Mapping[str, Any]]) -> None:
    """Rows that a row of a newer version isn't there for."""
    if not values:
        return
    rows: Insert = upsert(table).values(values)
    changed = [name for name in values[0] if name not in {column.key for column in key}]
    await connection.execute(rows.on_conflict_do_update(
        index_elements=list(key), set_={name: rows.excluded[name] for name in changed},
        where=_newer(table.version, rows.excluded.version)))


async def _advance_watermarks(connection: AsyncConnection, arrived: Mapping[Series, set[int]],
                              floors: Mapping[Series, int]) -> dict[Series, int]:
    by_key = {Series(clean(each.call), clean(each.source), each.fence): each for each in sorted(arrived)}
    await connection.execute(upsert(EventWatermark).values([
        {"call_id": key.call, "source": key.source, "fence": key.fence, "sequence": 0, "ahead": []}
        for key in by_key]).on_conflict_do_nothing())
    columns = EventWatermark.call_id, EventWatermark.source, EventWatermark.fence
    asked = (select(*columns, EventWatermark.sequence, EventWatermark.ahead)
             .where(tuple_(*columns).in_([tuple(key) for key in by_key])).order_by(*columns))
    known = (await connection.execute(asked.with_for_update())).all()
    marks: dict[Series, int] = {}
    changes: list[dict[str, Any]] = []
    for call, source, fence, sequence, ahead in known:
        series = by_key[Series(call, source, fence)]
        marks[series], gap = advance(sequence, {*ahead, *arrived[series]}, floors.get(series, 1))
        if (marks[series], gap) != (sequence, ahead):
            changes.append({"of_call": call, "of_source": source, "of_fence": fence,
                            "sequence": marks[series], "ahead": gap})
    if changes:
        await connection.execute(
            update(_WATERMARK_TABLE).where(EventWatermark.call_id == bindparam("of_call"),
                                           EventWatermark.source == bindparam("of_source"),
                                           EventWatermark.fence == bindparam("of_fence")), changes)
    return marks


def advance(sequence: int, arrived: Iterable[int], floor: int) -> tuple[int, list[int]]:
    """The watermark after `arrived`, and what lies ahead of the first gap; below `floor` nothing is waited
    for."""
    sequence = max(sequence, floor - 1)
    ahead = sorted(each for each in set(arrived) if each > sequence)
    while ahead and ahead[0] == sequence + 1:
        sequence = ahead.pop(0)
    return sequence, ahead


def _version(envelope: Envelope) -> list[int]:
    return [envelope.fence, envelope.sequence]


def _newer(kept: Any, offered: Any) -> Any:
    return func.coalesce(kept, cast([], Version)) < offered


def clean(text: str) -> str:
    """Postgres's text can't hold a zero character, and a foreign phone's header may have one."""
    return text.replace("\0", "\ufffd")


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
