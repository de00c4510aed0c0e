from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from sqlalchemy import desc, insert, select
from sqlalchemy.dialects.postgresql import dialect

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
from calls.searching import has_part
from calls.store import Store
from calls.tables import Call

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


@pytest.mark.parametrize(("part", "found"), [
    ("+4930", "ba"), ("4711", "b"), ("ANN@exa", "c"), ("N@", "dc"), ("%", ""), ("_", ""), ("@example.org", "dc"),
    ("sip:+49305554711@trunk", "b"), ("47110", ""), ("\0", ""),
])
async def test_calls_are_found_by_a_part_of_an_address_whatever_its_case(store: Store, part: str, found: str) -> None:
    for minute, (call, caller) in enumerate({
            "a": "sip:+49305550000@trunk", "b": "sip:+49305554711@trunk", "c": "sip:Ann@example.org",
            "d": "sip:ben@example.org"}.items()):
        received = CallReceived("sip", "inbound", caller, f"sip:{call}@here", call, "b", "agent")
        await store.apply([Envelope(call, "b", 1, 1, AT + timedelta(minutes=minute), received)])
    reports = Reports(store)
    assert "".join(one.call.id for one in await reports.calls(CallFilter(caller=part))) == found
    assert [one.call.id for one in await reports.calls(CallFilter(callee="B@HERE"))] == ["b"]


async def test_a_part_of_an_address_is_looked_up_and_not_looked_for_in_every_call(store: Store) -> None:
    async with store.transaction() as connection:
        await connection.execute(insert(Call), [
            {"id": f"call-{number}", "received_at": AT + timedelta(seconds=number),
             "caller": f"sip:caller{number}@example.org"} for number in range(5000)])
        await connection.exec_driver_sql("ANALYZE calls")
        query = select(Call.id).where(has_part(Call.caller, "caller4711@")).order_by(desc(Call.received_at)).limit(50)
        plan = str(query.compile(dialect=dialect(), compile_kwargs={"literal_binds": True})).replace("%", "%%")
        told = (await connection.exec_driver_sql(f"EXPLAIN {plan}")).scalars().all()
    assert any("calls_by_caller" in line for line in told), told
    assert [one.call.id for one in await Reports(store).calls(CallFilter(caller="caller4711@"))] == ["call-4711"]


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
