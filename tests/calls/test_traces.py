from __future__ import annotations

import asyncio
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from collector import collecting

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMoved,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    Event,
    LineNoted,
)
from calls.trace_export import LAST_S, Traces
from calls.traces import CallSpans, Span, root_of, trace_of

BEGAN = datetime(2026, 11, 30, 12, tzinfo=UTC)
RECEIVED = CallReceived("sip", "inbound", "sip:+4930123@trunk.example", "sip:agent@here", "ref", "bridge 1", "agent")
SAID = "The secret word is swordfish."


def after(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def ended(reason: EndReason = EndReason.CALLER_HUNG_UP, detail: str = "") -> CallEnded:
    return CallEnded(reason, "remote", 200, detail, 1250, 1, 2, 3)


LIFE: list[tuple[float, Event]] = [
    (0.0, RECEIVED),
    (0.5, CallLeased("nano", "w1", "e1")),
    (2.0, CallAnswered("G722")),
    (10.0, ControlTaken("id1", "say", SAID, False, "ann", after(9.5), "said", 90, 99, "")),
    (12.0, LineNoted("key", "remote", "5", "rfc4733", 120)),
    (20.0, CallLeased("nano", "w2", "e2")),
    (20.0, CallMoved("w1", "w2", "closed", 200, 1.25, 220)),
    (30.0, ended()),
]


def spans_of(call: str, life: list[tuple[float, Event]], made: CallSpans | None = None) -> list[Span]:
    made = made or CallSpans()
    return [span for number, (at, event) in enumerate(life, 1)
            for span in made.of(Envelope(call, "bridge 1", 1, number, after(at), event))]


def test_a_calls_life_is_set_up_lease_talk_moves_and_controls() -> None:
    spans = {span.name: span for span in spans_of("c", LIFE)}
    lasted = {name: ((span.began - BEGAN).total_seconds(), (span.ended - BEGAN).total_seconds())
              for name, span in spans.items()}
    assert lasted == {"lease": (0, 0.5), "set-up": (0, 2), "control say": (9.5, 10), "move": (18.75, 20),
                      "talk": (2, 30), "call": (0, 30)}
    root = spans["call"]
    assert [name for name, span in spans.items() if span.is_root] == ["call"]
    assert root.attributes["tandem.worker"] == "w2"
    assert root.attributes["tandem.moves"] == 1
    assert root.marks == (("key (remote)", after(12)),)
    assert not any(span.fault for span in spans.values())


def test_neither_what_is_said_nor_who_calls_is_in_a_trace() -> None:
    told = repr(spans_of("c", LIFE))
    assert "swordfish" not in told
    assert "4930123" not in told


def test_a_call_that_isnt_taken_has_a_set_up_that_failed() -> None:
    spans = {span.name: span for span in spans_of("c", [(0.0, RECEIVED), (3.0, ended(EndReason.NO_WORKER, "none"))])}
    assert set(spans) == {"set-up", "call"}
    assert spans["call"].fault == spans["set-up"].fault == "no_worker: none"


def test_nothing_is_kept_of_calls_that_have_ended() -> None:
    made = CallSpans()
    for number in range(100):
        spans_of(f"c{number}", LIFE, made)
    assert not vars(made)["_running"]
    assert spans_of("c1", LIFE[1:], made) == [], "nor is one made of a call whose beginning wasn't heard"


def test_a_calls_id_is_its_traces_id() -> None:
    call = uuid4().hex
    assert f"{trace_of(call):032x}" == call
    assert 0 < trace_of("any other name") < 1 << 128
    assert 0 < root_of(call) < 1 << 64
    assert root_of(call) != root_of(uuid4().hex)


async def test_a_collector_gets_one_trace_from_a_bridge_and_a_worker() -> None:
    call = uuid4().hex
    with collecting() as collector:
        bridge, worker = Traces(collector.url, "sip", "bridge 1"), Traces(collector.url, "worker", "w1")
        for number, (at, event) in enumerate(LIFE, 1):
            bridge.note(Envelope(call, "bridge 1", 1, number, after(at), event))
        worker.add(Span(call, "slot", after(1), after(30), {"tandem.slot": 3}))
        await bridge.close()
        await worker.close()
        assert {span.trace for span in collector.spans} == {call}
        assert len(collector.spans) == 7
        root, slot = collector.wait_for("call"), collector.wait_for("slot")
        assert root.parent == ""
        assert {span.parent for span in collector.spans if span is not root} == {root.id}
        assert (root.service, slot.service) == ("tandem-sip", "tandem-worker")
        assert slot.attributes == {"tandem.slot": 3}
        assert (root.seconds, slot.seconds) == (30, 29)
        talk = collector.wait_for("talk")
        assert talk.attributes["tandem.frames_missing"] == 2
        assert root.marks == ("key (remote)",)


async def test_faults_are_errors_in_the_trace() -> None:
    call = uuid4().hex
    with collecting() as collector:
        bridge = Traces(collector.url, "sip", "b")
        for number, (at, event) in enumerate([*LIFE[:-1], (30.0, ended(EndReason.WORKER_LOST, "gone"))], 1):
            bridge.note(Envelope(call, "b", 1, number, after(at), event))
        await bridge.close()
        root = collector.wait_for("call")
        assert root.is_error
        assert root.status == "worker_lost: gone"


async def test_a_collector_that_is_away_costs_a_call_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/traces"
    bridge = Traces(url, "sip", "b")
    began = time.perf_counter()
    for call in range(500):
        for number, (at, event) in enumerate(LIFE, 1):
            bridge.note(Envelope(f"c{call}", "b", 1, number, after(at), event))
    took_s = time.perf_counter() - began
    assert took_s / (500 * len(LIFE)) < 0.001, "less than a millisecond an event"
    began = time.perf_counter()
    await bridge.close()
    assert time.perf_counter() - began < LAST_S + 2


async def test_without_a_collector_nothing_is_made() -> None:
    before = asyncio.all_tasks(), threading.active_count()
    traces = Traces(None, "sip", "b")
    traces.note(Envelope("c", "b", 1, 1, BEGAN, RECEIVED))
    traces.add(Span("c", "slot", BEGAN, BEGAN))
    assert (asyncio.all_tasks(), threading.active_count()) == before
    await traces.close()
