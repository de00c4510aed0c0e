"""Calls over the API: found, told in parts, placed, erased; live as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from api_client import Api
from redis.asyncio import Redis

from calls.audit import Audit
from calls.controls import ControlInbox
from calls.erasing import Erasing
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallReceived,
    EndReason,
    Envelope,
    Event,
    LineNoted,
    Measure,
    RecordingKept,
    Speaker,
    Transport,
    UtteranceSpoken,
    Word,
)
from calls.live import EventWriter
from calls.store import Store
from media.latency import Histogram

AT = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 0, 0, 0)


def said(text: str, first_k: int, speaker: Speaker = Speaker.CALLER) -> UtteranceSpoken:
    words = tuple(Word(word, first_k + at, first_k + at, 0.08 * (first_k + at), 0.08 * (first_k + at + 1))
                  for at, word in enumerate(text.split()))
    return UtteranceSpoken(speaker, first_k, words[-1].last_k, words, final=True)


async def write(store: Store, call: str, minute: int, received: CallReceived, *events: Event) -> None:
    await store.apply([Envelope(call, "b", 1, number, AT + timedelta(minutes=minute), event)
                       for number, event in enumerate((received, *events), 1)])


@pytest.fixture
async def calls(store: Store) -> None:
    """Three that are over: a by phone, b by phone and busy, c from a browser."""
    ann = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:4711@here", "r", "b", "night")
    await write(store, "a", 1, ann, CallLeased("nano", "w1", "e"), CallAnswered("PCMU"), said("a table for two", 10),
                said("of course", 30, Speaker.AGENT), ENDED)
    await write(store, "b", 2, CallReceived("sip", "outbound", "agent", "sip:bob_smith@there", "r", "b", "agent"),
                CallEnded(EndReason.BUSY, "remote", 486, "", 0, 0, 0, 0))
    await write(store, "c", 3, CallReceived("webrtc", "inbound", "web", "agent", "r", "b", "agent"),
                CallAnswered("opus"), said("is there a table", 10), ENDED)


FOUND = {
    "": "cba", "protocol=sip": "ba", "direction=outbound": "b", "agent=night": "a", "worker=w1": "a", "caller=ANN": "a",
    "callee=b_s": "b", "callee=b%25s": "", "end=busy": "b", "end=running": "", "said=true": "ca", "q=table": "ca",
    "q=table&protocol=sip": "a", "q=%00": "",
    f"since={quote((AT + timedelta(minutes=2)).isoformat())}": "cb",
    f"until={quote((AT + timedelta(minutes=2)).isoformat())}": "a",
}
REFUSED = {
    "protocol=carrier_pigeon": "protocol", "end=never": "end", "since=yesterday": "since",
    "since=2026-11-30T09:00:00": "since", "limit=0": "limit", "cursor=rubbish": "cursor", "cursor=W10": "cursor",
}


async def test_calls_are_found_by_what_they_are_and_what_was_said(api: Api, calls: None) -> None:
    for query, found in FOUND.items():
        answer = (await api.ask(f"/calls?{query}")).body
        assert "".join(call["id"] for call in answer["calls"]) == found, query
        if query == "q=table":
            assert [call["match"]["text"] for call in answer["calls"]] == ["is there a table", "a table for two"]


async def test_what_cant_be_looked_for_is_named(api: Api) -> None:
    for query, named in REFUSED.items():
        answer = await api.ask(f"/calls?{query}")
        assert (answer.status, answer.body["error"]) == (422, "bad_request"), query
        assert answer.body["message"].startswith(named)


async def test_a_search_goes_on_within_a_call(api: Api, store: Store) -> None:
    received = CallReceived("sip", "inbound", "x", "y", "r", "b", "agent")
    for name, minute in (("old", 1), ("new", 2)):
        await write(store, name, minute, received, said("one table", 10), said("two table", 20, Speaker.AGENT), ENDED)
    told, cursor = [], ""
    while cursor is not None:
        page = (await api.ask(f"/search?q=table&limit=1{cursor and f'&cursor={cursor}'}")).body
        told += [(one["call"], one["text"]) for one in page["utterances"]]
        cursor = page["next"]
    assert told == [("new", "one table"), ("new", "two table"), ("old", "one table"), ("old", "two table")]


async def test_a_calls_words_measures_and_line_are_told(api: Api, calls: None, store: Store) -> None:
    await store.apply([
        Envelope("a", "m", 1, 1, AT, CallMeasured((Measure("response", 3, 1.5, 0.4, 0.6, 0.7),))),
        Envelope("a", "m", 1, 2, AT, LineNoted("key", "remote", "5", "rfc4733", 40))])
    words = (await api.ask("/calls/a/words")).body["words"]
    assert [(word["speaker"], word["text"]) for word in words] == [
        *(("caller", word) for word in ("a", "table", "for", "two")), ("agent", "of"), ("agent", "course")]
    assert (await api.ask("/calls/a/latency")).body["measures"]["response"]["p95_s"] == 0.6
    assert [(one["what"], one["text"]) for one in (await api.ask("/calls/a")).body["line"]] == [("key", "5")]
    assert (await api.ask("/calls/none/words")).status == (await api.ask("/calls/none/latency")).status == 404


async def test_how_often_turns_and_hops_took_how_long_is_told_as_the_latency_page_shows_it(
        api: Api, store: Store) -> None:
    await store.apply(measured("a", "sip", response=(0.42, 0.43, 0.61), step=(0.031, 0.032)))
    await store.apply(measured("b", "webrtc", response=(2.5,)))
    told = (await api.ask("/latency/response", key="reads")).body
    assert (told["measure"], told["period"], told["calls"], told["count"]) == ("response", "day", 2, 4)
    assert (told["p50_s"], told["p95_s"], told["p99_s"]) == (0.45, 2.0, 2.0)
    assert [(bin["low_s"], bin["high_s"], bin["count"]) for bin in told["histogram"] if bin["count"]] == [
        (0.4, 0.45, 2), (0.6, 0.7, 1), (2.0, None, 1)]
    assert sum(step["count"] for step in told["over_time"]) == 4
    assert told["over_time"][0]["p50_s"] is None
    assert {(one["by"], one["name"]): one["count"] for one in told["carried"]} == {
        ("protocol", "sip"): 3, ("protocol", "webrtc"): 1, ("agent", "agent"): 4, ("worker", "w"): 4}
    assert [one["call"] for one in told["worst"]] == ["b", "a"]
    step = (await api.ask("/latency/step?protocol=sip&period=week")).body
    assert [(bin["low_s"], bin["count"]) for bin in step["histogram"] if bin["count"]] == [(0.03, 2)]
    nothing = (await api.ask("/latency/gap")).body
    assert (nothing["count"], nothing["p50_s"], nothing["histogram"]) == (0, None, [])
    assert (await api.ask("/latency/response", key="controls")).status == 403
    for bad in ("/latency/mood", "/latency/step?period=year", "/latency/step?protocol=pigeon"):
        assert ((await api.ask(bad)).status, (await api.ask(bad)).body["error"]) == (422, "bad_request")


def measured(call: str, transport: Transport, **durations_s: Iterable[float]) -> list[Envelope]:
    """A call of just now, as sessions measure it."""
    measures = []
    for name, each in durations_s.items():
        histogram = Histogram()
        for seconds in each:
            histogram.add(seconds)
        measures.append(histogram.measure(name))
    events = (CallReceived(transport, "inbound", "ann", "agent", call, "b", "agent"), CallLeased("nano", "w", "e"),
              CallAnswered("PCMU"), CallMeasured(tuple(measures)))
    return [Envelope(call, "b", 1, number, datetime.now(UTC), event) for number, event in enumerate(events, 1)]


async def test_an_erased_call_is_gone_with_its_sound_and_what_still_comes_of_it_isnt_kept(
        api: Api, calls: None, store: Store, tmp_path: Path) -> None:
    kept = tmp_path / "a.flac"
    kept.write_bytes(b"sound")
    await store.apply([Envelope("a", "r", 1, 1, AT, RecordingKept(str(kept), "flac", 1.0, 5, 0.0, 0.0))])
    assert (await api.delete("/calls/a", key="configures")).status == 403
    assert (await api.delete("/calls/a", key="erases")).status == 204
    assert not kept.exists()
    late = Envelope("a", "b", 1, 9, AT, said("my secret", 60))
    assert await store.apply([late]) == {late.series: 9}  # its bridge need not send it again
    for path in ("/calls/a", "/calls/a/words", "/calls/a/recording"):
        assert (await api.ask(path)).status == 404
    assert (await api.ask("/search?q=secret")).body["utterances"] == []
    assert (await api.delete("/calls/a", key="erases")).status == 404
    assert [(entry.action, entry.subject) for entry in await Audit(store).newest()] == [("call erased", "a")]


async def test_a_recording_that_is_kept_after_its_call_was_erased_or_cant_be_reached_is_remembered(
        api: Api, calls: None, store: Store, tmp_path: Path) -> None:
    away = tmp_path / "gone" / "a.wav"  # not a place of recordings
    await store.apply([Envelope("a", "r", 1, 1, AT, RecordingKept(str(away), "flac", 1.0, 5, 0.0, 0.0))])
    for call in "ab":
        assert (await api.delete(f"/calls/{call}", key="erases")).status == 204
    await store.apply([Envelope("b", "r", 1, 1, AT, RecordingKept("/later/b.flac", "flac", 1.0, 5, 0.0, 0.0))])
    assert await Erasing(store).left() == {"a": str(away), "b": "/later/b.flac"}


async def test_a_call_that_runs_isnt_erased(api: Api, calls: None, redis: Redis) -> None:
    await ControlInbox(redis, "b").here(["a"], 30)
    answer = await api.delete("/calls/a", key="erases")
    assert (answer.status, answer.body["error"]) == (409, "conflict")
    assert (await api.ask("/calls/a")).status == 200


async def test_live_events_begin_with_a_snapshot_and_go_on_with_what_is_said(
        api: Api, redis: Redis, store: Store) -> None:
    received = CallReceived("sip", "inbound", "x", "y", "r", "b", "agent")
    for call in ("one", "two"):
        await write(store, call, 1, received, CallAnswered("PCMU"), said("hello", 10))
    await ControlInbox(redis, "b").here(["one", "two"], 30)
    writer = EventWriter(redis, "b", kept_events=100)
    assert (await api.ask("/live/events", key="controls")).status == 403
    async with asyncio.timeout(10), api.events("/live/events?call=two", key="reads") as events:
        snapshot = json.loads(await anext(events))
        assert [(call["id"], call["utterances"][0]["text"]) for call in snapshot["calls"]] == [("two", "hello")]
        writer.emit("one", 1, said("not asked for", 20))
        writer.emit("two", 1, said("a table please", 40))
        assert await writer.drain(5) == 0
        came = json.loads(await anext(events))
        assert (came["call"], came["type"], came["text"]) == ("two", "utterance", "a table please")


async def test_there_is_one_shape_of_errors(api: Api) -> None:
    for path, method, status in (("/nothing", "GET", 404), ("/calls", "PATCH", 405), ("/calls/a/b/c", "GET", 404)):
        answer = await api.ask(path, method=method)
        assert answer.status == status
        assert set(answer.body) == {"error", "message"}
