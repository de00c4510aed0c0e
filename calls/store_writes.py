"""Events into rows: the writing half of calls/store.py, which says what is promised.

Every function works within the transaction that it is given.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Table, bindparam, cast, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallMoved,
    CallReceived,
    ControlTaken,
    Envelope,
    LineNoted,
    RecordingKept,
    Series,
    UtteranceSpoken,
)
from calls.tables import (
    Call,
    CallControl,
    CallMeasure,
    ErasedCall,
    EventWatermark,
    LineEvent,
    Move,
    Recording,
    Utterance,
    Version,
)
from calls.tables import Word as WordTable

_CALL_TABLE = typing.cast(Table, Call.__table__)
_WATERMARK_TABLE = typing.cast(Table, EventWatermark.__table__)
_CALL_EVENTS = (CallReceived, CallLeased, CallAnswered, CallEnded)


async def write_events(connection: AsyncConnection, envelopes: Sequence[Envelope], calls: Collection[str]) -> set[str]:
    """Each event's effect, in whatever order they come; the rows of a call in one fixed order, calls first. Returns
    those of the calls that were erased: nothing is written of them."""
    await _touch_calls(connection, envelopes, calls)
    erased = await _drop_erased(connection, calls)
    await _remember_sound(connection, [each for each in envelopes if clean(each.call) in erased])
    envelopes = [each for each in envelopes if clean(each.call) not in erased]
    for kind in _CALL_EVENTS:
        await _update_calls(connection, [each for each in envelopes if isinstance(each.event, kind)])
    await _write_utterances(connection, envelopes)
    await _write_measures(connection, envelopes)
    await _write_controls(connection, envelopes)
    await _write_moves(connection, envelopes)
    await _write_line_events(connection, envelopes)
    await _write_recordings(connection, envelopes)
    return erased


async def _drop_erased(connection: AsyncConnection, calls: Collection[str]) -> set[str]:
    """Those that were erased, whose rows go: who erases waits for a call's row, so none can come in between."""
    query = select(ErasedCall.call_id).where(ErasedCall.call_id.in_([clean(call) for call in calls]))
    erased = set((await connection.execute(query)).scalars())
    if erased:
        await connection.execute(delete(Call).where(Call.id.in_(erased)))
    return erased


async def _remember_sound(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    """Recordings that were kept after their calls were erased: they are to be removed."""
    for call, each in _newest(envelopes, RecordingKept):
        if isinstance(each.event, RecordingKept):
            await connection.execute(update(ErasedCall).where(ErasedCall.call_id == call)
                                     .values(url=clean(each.event.url)))


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
                    "frames_missing": event.frames_missing, "underruns": event.underruns, "q850": event.q850}
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
    values = [{"call_id": call, **vars(measure), "name": clean(measure.name), "bins": list(measure.bins) or None,
               "version": _version(each)}
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


async def _write_line_events(connection: AsyncConnection, envelopes: Iterable[Envelope]) -> None:
    """Each is written once, and never changes."""
    values = [{"call_id": clean(each.call), "source": clean(each.source), "fence": each.fence,
               "sequence": each.sequence, "at": each.at, "what": event.what, "side": event.side,
               "text": clean(event.text), "via": clean(event.via), "k": event.k}
              for each in sorted(envelopes, key=lambda each: (each.call, each.fence, each.sequence))
              if isinstance(event := each.event, LineNoted)]
    if values:
        await connection.execute(upsert(LineEvent).values(values).on_conflict_do_nothing())


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


async def advance_watermarks(connection: AsyncConnection, arrived: Mapping[Series, set[int]],
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
