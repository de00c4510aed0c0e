"""Events into deliveries of webhooks, within the transaction that writes the events."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from calls.events import (
    CallAnswered,
    CallEnded,
    CallMoved,
    CallReceived,
    Envelope,
    RecordingKept,
    UtteranceSpoken,
)
from calls.store_writes import clean
from calls.tables import WebhookDelivery, WebhookRow
from calls.webhooks import EventType

_KINDS = {CallReceived: EventType.RECEIVED, CallAnswered: EventType.ANSWERED, CallMoved: EventType.MOVED,
          CallEnded: EventType.ENDED, UtteranceSpoken: EventType.UTTERANCE, RecordingKept: EventType.RECORDED}

Rows = Callable[[Collection[str]], Awaitable[Mapping[str, Mapping[str, Any]]]]


async def note_deliveries(connection: AsyncConnection, envelopes: Sequence[Envelope], rows: Rows) -> None:
    """Each event once for each webhook that wants its type, however often it comes; `rows` are the calls' own."""
    told = [(each, kind) for each in envelopes if (kind := _kind(each)) is not None]
    if not told:
        return
    wanting = (await connection.execute(select(WebhookRow.id, WebhookRow.events).where(WebhookRow.enabled))).all()
    wanted = {kind for _, events in wanting for kind in events}
    told = [(each, kind) for each, kind in told if kind.value in wanted]
    if not told:
        return
    calls = await rows({clean(each.call) for each, _ in told})
    at = datetime.now(UTC)
    values = [{"webhook_id": id, "event_id": event, "type": kind.value, "call_id": clean(each.call),
               "body": body_of(kind, each.at, data), "created_at": at, "state": "pending", "attempts": 0, "next_at": at}
              for each, kind in told for event, data in (_told(each, kind, calls),)
              for id, events in wanting if kind.value in events]
    if values:
        await connection.execute(upsert(WebhookDelivery).values(values).on_conflict_do_nothing())


def body_of(kind: str, at: datetime, data: Mapping[str, Any]) -> str:
    return json.dumps({"type": kind, "timestamp": at.isoformat(), "data": data}, default=_plain)


def _kind(envelope: Envelope) -> EventType | None:
    if isinstance(envelope.event, UtteranceSpoken) and not envelope.event.final:
        return None
    return _KINDS.get(type(envelope.event))


def _told(envelope: Envelope, kind: EventType, calls: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The event's id, and what is told of it."""
    call = clean(envelope.call)
    match envelope.event:
        case UtteranceSpoken() as event:
            at = f"{event.speaker.value}:{event.first_k}"
            return f"{call}:utterance:{at}", {
                "call": call, "speaker": event.speaker.value, "first_k": event.first_k, "last_k": event.last_k,
                "start_s": event.words[0].start_s if event.words else None,
                "end_s": event.words[-1].end_s if event.words else None, "text": clean(event.text)}
        case RecordingKept() as event:
            return f"{call}:recording", {"call": call, "codec": event.codec, "seconds": event.seconds,
                                         "bytes": event.bytes, "lost_s": event.lost_s, "paused_s": event.paused_s}
        case CallMoved() as event:
            return f"{call}:moved:{envelope.fence}", {"call": calls.get(call), "worker": event.worker,
                                                      "worker_before": event.worker_before, "seconds": event.seconds}
        case _:
            return f"{call}:{kind.value.partition('.')[2]}", {"call": calls.get(call)}


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
