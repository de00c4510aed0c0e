from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from calls.events import (
    CallAnswered,
    CallEnded,
    CallMeasured,
    CallReceived,
    EndReason,
    Envelope,
    Event,
    Measure,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.reports import CallFilter, Latency, Reports
from calls.store import Store

AT = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)


def said(text: str, first_k: int) -> UtteranceSpoken:
    words = tuple(Word(word, first_k + at, first_k + at, 0.08 * (first_k + at), 0.08 * (first_k + at + 1))
                  for at, word in enumerate(text.split()))
    return UtteranceSpoken(Speaker.CALLER, first_k, first_k + len(words), words, final=True)


def ended(reason: EndReason) -> CallEnded:
    return CallEnded(reason, "remote", 200, "", 100, 0, 0, 0)


async def write(store: Store, call: str, minute: int, protocol: Literal["sip", "webrtc"], *events: Event) -> None:
    received = CallReceived(protocol, "inbound", "ann", "agent", call, "b", "agent")
    at = AT + timedelta(minutes=minute)
    await store.apply([Envelope(call, "b", 1, number, at, event)
                       for number, event in enumerate((received, *events), 1)])


@pytest.fixture
async def reports(store: Store) -> Reports:
    """Four calls: a and b by phone, c from a browser, d that nobody has seen the end of."""
    await write(store, "a", 1, "sip", CallAnswered("PCMU"), said("a table for two", 10), said("the table outside", 40),
                ended(EndReason.CALLER_HUNG_UP))
    await write(store, "b", 2, "sip", ended(EndReason.BUSY))
    await write(store, "c", 3, "webrtc", CallAnswered("opus"), said("is there parking", 10),
                ended(EndReason.CALLER_HUNG_UP))
    await write(store, "d", 4, "webrtc", CallAnswered("opus"), said("one table", 10))
    return Reports(store)


@pytest.mark.parametrize(("wanted", "found"), [
    (CallFilter(), "dcba"),
    (CallFilter(protocol="sip"), "ba"),
    (CallFilter(reason="busy"), "b"),
    (CallFilter(reason="caller_hung_up", protocol="webrtc"), "c"),
    (CallFilter(reason="running"), "d"),
    (CallFilter(said=True), "dca"),
    (CallFilter(words="table"), "da"),
    (CallFilter(words='"for two" or parking'), "ca"),
    (CallFilter(words="table -outside"), "da"),
    (CallFilter(words="nothing"), ""),
    (CallFilter(protocol="sip\0", words="\0"), ""),
])
async def test_calls_are_found_by_what_they_are_and_what_was_said(
        reports: Reports, wanted: CallFilter, found: str) -> None:
    assert "".join(one.call.id for one in await reports.calls(wanted)) == found


async def test_a_search_tells_the_first_utterance_that_has_the_words_and_goes_page_by_page(reports: Reports) -> None:
    wanted = CallFilter(words="table")
    [first] = await reports.calls(wanted, 1)
    [second] = await reports.calls(wanted, 1, first.cursor)
    assert [one.match.text for one in (first, second) if one.match] == ["one table", "a table for two"]
    assert second.match is not None
    assert second.match.start_s == pytest.approx(0.8)
    assert await reports.calls(wanted, 1, second.cursor) == ()


async def test_calls_whose_end_nobody_knows_are_told_apart(reports: Reports) -> None:
    assert [row.id for row in await reports.unended()] == ["d"]


async def test_latency_is_told_by_transport_with_the_worst_call(reports: Reports, store: Store) -> None:
    for call, p50, p95 in (("a", 0.1, 0.2), ("c", 0.3, 0.4), ("d", 0.5, 0.9)):
        measures = (Measure("whole", 10, 1.0, p50, p95, p95), Measure("overlap", 1, 1.0, None, None, None))
        await store.apply([Envelope(call, "other", 1, 1, AT, CallMeasured(measures))])
    assert await reports.latency() == (
        Latency("sip", "whole", 1, 0.1, 0.2, 0.2, "a"),
        Latency("webrtc", "whole", 2, pytest.approx(0.4), pytest.approx(0.65), 0.9, "d"))
    assert [(one.protocol, one.calls) for one in await reports.latency(1)] == [("webrtc", 1)]
