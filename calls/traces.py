"""A call's life as a trace: spans made of its events, with the times that these carry (pure).

    call ─┬─ set-up ── lease           from the first ring to the answer, or to the end of a call that isn't taken
          ├─ talk                      from the answer to the end
          ├─ move                      without a worker, or followed by the next one
          ├─ control hang_up, say, …   from its acceptance to its effect
          └─ slot                      what each worker tells that it had (agent/worker.py)

The call's id is the trace's id, and the id of its first span follows from it: so processes need tell each other
nothing, and whoever has a call's id finds its trace. What is said, and who calls, isn't in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMoved,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    LineNoted,
)

FAULTS = (EndReason.FAILED, EndReason.WORKER_LOST, EndReason.NO_WORKER, EndReason.OVERLOADED, EndReason.MEDIA_LOST)
MOST_MARKS = 64  # of a call's line, in its trace

Value = str | int | float | bool
Attributes = Mapping[str, Value]


def trace_of(call: str) -> int:
    """128 bits: the call's id itself, where it is such a number."""
    if re.fullmatch(r"[0-9a-f]{32}", call) and int(call, 16):
        return int(call, 16)
    return int.from_bytes(hashlib.sha256(call.encode()).digest()[:16]) or 1


def root_of(call: str) -> int:
    """64 bits: the id of a call's first span."""
    return int.from_bytes(hashlib.sha256(b"root " + call.encode()).digest()[:8]) or 1


@dataclass(frozen=True)
class Span:
    """`fault` says what went wrong, where something did. Without `parent` it hangs on the call's first span."""

    call: str
    name: str
    began: datetime
    ended: datetime
    attributes: Attributes = field(default_factory=dict)
    fault: str = ""
    marks: tuple[tuple[str, datetime], ...] = ()
    is_root: bool = False


@dataclass
class _Running:
    received_at: datetime
    about: CallReceived
    leased_at: datetime | None = None
    answered_at: datetime | None = None
    model: str = ""
    worker: str = ""
    codec: str = ""
    moves: int = 0
    marks: list[tuple[str, datetime]] = field(default_factory=list)


class CallSpans:
    """Makes the spans of the calls that run; keeps nothing of a call that has ended."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def of(self, envelope: Envelope) -> list[Span]:
        """Those that this event ends."""
        call, at, event = envelope.call, envelope.at, envelope.event
        if isinstance(event, CallReceived):
            self._running[call] = _Running(at, event)
            return []
        running = self._running.get(call)
        if running is None:
            return []
        match event:
            case CallLeased(model, worker):
                first, running.leased_at = running.leased_at is None, running.leased_at or at
                running.model, running.worker = model, worker
                return [Span(call, "lease", running.received_at, at, _worker(model, worker))] if first else []
            case CallAnswered(codec):
                running.answered_at, running.codec = at, codec
                return [Span(call, "set-up", running.received_at, at)]
            case CallMoved() as move:
                running.moves += 1
                return [Span(call, "move", at - timedelta(seconds=move.seconds), at, {
                    **_worker(running.model, move.worker), "tandem.worker_before": move.worker_before,
                    "tandem.why": move.why, "tandem.steps": move.steps})]
            case ControlTaken() as control:
                return [Span(call, f"control {control.action}", min(control.accepted_at, at), at, {
                    "tandem.control": control.id, "tandem.by": control.by, "tandem.outcome": control.outcome,
                    "tandem.first_k": control.first_k, "tandem.k": control.k})]
            case LineNoted() as noted if len(running.marks) < MOST_MARKS:
                running.marks.append((f"{noted.what} ({noted.side})", at))
            case CallEnded() as end:
                del self._running[call]
                return _last(call, running, end, at)
        return []


def _worker(model: str, worker: str) -> dict[str, Value]:
    return {"tandem.model": model, "tandem.worker": worker}


def _last(call: str, running: _Running, end: CallEnded, at: datetime) -> list[Span]:
    fault = f"{end.reason}: {end.detail}".rstrip(": ") if end.reason in FAULTS else ""
    about = running.about
    attributes: dict[str, Value] = {
        "tandem.call": call, "tandem.protocol": about.protocol, "tandem.direction": about.direction,
        "tandem.agent": about.agent, "tandem.bridge": about.bridge, "tandem.reason": end.reason.value,
        "tandem.ended_by": end.side, "tandem.moves": running.moves, **_worker(running.model, running.worker)}
    if end.sip_status is not None:
        attributes["tandem.sip_status"] = end.sip_status
    if running.answered_at is None:
        inner = Span(call, "set-up", running.received_at, at, fault=fault)
    else:
        inner = Span(call, "talk", running.answered_at, max(at, running.answered_at), {
            "tandem.codec": running.codec, "tandem.frames": end.frames, "tandem.frames_dropped": end.frames_dropped,
            "tandem.frames_missing": end.frames_missing, "tandem.underruns": end.underruns})
    return [inner, Span(call, "call", running.received_at, at, attributes, fault, tuple(running.marks), is_root=True)]
