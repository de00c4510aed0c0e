from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallMoved,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    Event,
    Measure,
    RecordingKept,
    Series,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.store import (
    CallRow,
    ControlRow,
    DatabaseAway,
    MoveRow,
    RecordingRow,
    Refused,
    Store,
    StoreError,
    upgrade,
)
from calls.store_writes import advance
from calls.tables import Base

AT = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "a84b4c76e66710", "bridge 1",
                        "agent")
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "BYE", 500, 3, 2, 1)


def utterance(*texts: str, first_k: int = 10, final: bool = False, speaker: Speaker = Speaker.AGENT) -> UtteranceSpoken:
    words = tuple(Word(text, first_k + 2 * n, first_k + 2 * n + 1, 0.08 * (first_k + 2 * n),
                       0.08 * (first_k + 2 * n + 2)) for n, text in enumerate(texts))
    return UtteranceSpoken(speaker, first_k, first_k + 2 * len(texts), words, final)


def envelope(event: Event, sequence: int, *, fence: int = 1, call: str = "call", seconds: float = 0) -> Envelope:
    return Envelope(call, "bridge", fence, sequence, AT + timedelta(seconds=seconds), event)


WHOLE_CALL = (
    envelope(RECEIVED, 1, fence=0),
    envelope(CallLeased("moshi", "w1", "e1"), 1, seconds=1),
    envelope(CallAnswered("PCMU"), 2, seconds=2),
    envelope(utterance("good"), 3, seconds=3),
    envelope(utterance("good", "morning"), 4, seconds=4),
    envelope(utterance("hello", first_k=20, speaker=Speaker.CALLER), 5, seconds=5),
    envelope(utterance("good", "morning", "Ann", final=True), 6, seconds=6),
    envelope(CallLeased("moshi", "w2", "e2"), 1, fence=2, seconds=7),
    envelope(utterance("goodbye", first_k=40, final=True), 2, fence=2, seconds=8),
    envelope(ENDED, 3, fence=2, seconds=9),
)
WHOLE_ROW = CallRow(
    id="call", state="ended", received_at=AT, protocol="sip", direction="inbound", caller="sip:ann@example.org",
    callee="sip:agent@here", reference="a84b4c76e66710", bridge="bridge 1", agent="agent", model="moshi", worker="w2",
    epoch="e2", fence=2, answered_at=AT + timedelta(seconds=2), codec="PCMU", ended_at=AT + timedelta(seconds=9),
    end_reason="caller_hung_up", ended_by="remote", sip_status=200, end_detail="BYE", frames=500, frames_dropped=3,
    frames_missing=2, underruns=1, q850=None)


async def heard(store: Store, call: str = "call") -> list[tuple[str, str, bool, tuple[str, ...]]]:
    return [(each.speaker, each.text, each.final, tuple(word.text for word in each.words))
            for each in await store.utterances(call)]


WHOLE_TRANSCRIPT = [
    ("agent", "good morning Ann", True, ("good", "morning", "Ann")),
    ("caller", "hello", False, ("hello",)),
    ("agent", "goodbye", True, ("goodbye",)),
]


async def test_a_calls_events_make_its_row_and_its_transcript(store: Store) -> None:
    marks = await store.apply(WHOLE_CALL)
    assert marks == {Series("call", "bridge", 0): 1, Series("call", "bridge", 1): 6, Series("call", "bridge", 2): 3}
    assert await store.call("call") == WHOLE_ROW
    assert await heard(store) == WHOLE_TRANSCRIPT


async def test_words_keep_their_frames_and_times(store: Store) -> None:
    await store.apply([envelope(utterance("good", "morning"), 1)])
    (spoken,) = await store.utterances("call")
    assert (spoken.first_k, spoken.last_k, spoken.start_s, spoken.end_s) == (10, 14, 0.8, pytest.approx(1.12))
    assert spoken.words == utterance("good", "morning").words


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(WHOLE_CALL))), again=st.lists(st.integers(0, len(WHOLE_CALL) - 1), max_size=6),
       cuts=st.sets(st.integers(1, len(WHOLE_CALL)), max_size=4), number=st.integers(0, 10**9))
async def test_in_any_order_and_however_often_events_come_the_result_is_the_same(
        store: Store, order: list[int], again: list[int], cuts: set[int], number: int) -> None:
    call = f"call {number} {random.random()}"
    stream = [replace(WHOLE_CALL[i], call=call) for i in [*order, *again]]
    edges = [0, *sorted(cuts), len(stream)]
    marks: dict[Series, int] = {}
    for start, end in pairwise(edges):
        marks |= await store.apply(stream[start:end])
    assert await store.call(call) == replace(WHOLE_ROW, id=call)
    assert await heard(store, call) == WHOLE_TRANSCRIPT
    assert marks == {Series(call, "bridge", 0): 1, Series(call, "bridge", 1): 6, Series(call, "bridge", 2): 3}


@pytest.mark.parametrize(("come", "state"), [
    ((0,), "ringing"), ((0, 1), "ready"), ((0, 1, 2), "talking"), ((0, 1, 2, 9), "ended"), ((9,), "ended"),
    ((9, 2), "ended"), ((2,), "talking")])
async def test_a_calls_state_follows_from_what_has_come(store: Store, come: tuple[int, ...], state: str) -> None:
    for i in come:
        await store.apply([WHOLE_CALL[i]])
    found = await store.call("call")
    assert found is not None
    assert found.state == state


async def test_a_call_that_was_refused_has_a_row_that_says_why(store: Store) -> None:
    refused = CallEnded(EndReason.BUSY, "local", 486, "all slots of model 'moshi' are taken", 0, 0, 0, 0)
    await store.apply([envelope(RECEIVED, 1, fence=0), envelope(refused, 2, fence=0, seconds=0.1)])
    row = await store.call("call")
    assert row is not None
    assert (row.state, row.end_reason, row.ended_by, row.sip_status, row.end_detail, row.answered_at, row.worker) == (
        "ended", "busy", "local", 486, "all slots of model 'moshi' are taken", None, None)


async def test_the_watermark_stops_at_a_gap_and_jumps_when_it_is_filled(store: Store) -> None:
    series = Series("call", "bridge", 1)
    events = {n: envelope(utterance("a", first_k=n), n) for n in range(1, 8)}
    assert await store.apply([events[1], events[3], events[4]]) == {series: 1}
    assert await store.apply([events[6]]) == {series: 1}
    assert await store.apply([events[2]]) == {series: 4}
    assert await store.apply([], skipped=[(series, 5)]) == {series: 6}
    assert await store.apply([events[2]]) == {series: 6}


async def test_nobody_waits_for_what_a_producer_no_longer_holds_but_it_counts_if_it_comes(store: Store) -> None:
    series = Series("call", "bridge", 1)
    late, early = envelope(utterance("late", first_k=9), 9), envelope(utterance("early", first_k=1), 3)
    assert await store.apply([late], floors={series: 9}) == {series: 9}
    assert await store.apply([early]) == {series: 9}
    assert [text for _, text, *_ in await heard(store)] == ["early", "late"]


async def test_one_event_that_postgres_refuses_undoes_its_whole_batch(store: Store) -> None:
    bad = envelope(replace(ENDED, sip_status=99), 2)
    with pytest.raises(Refused, match="calls_sip_status"):
        await store.apply([envelope(CallAnswered("PCMU"), 1), bad])
    assert await store.call("call") is None


@pytest.mark.parametrize("event", [
    replace(ENDED, frames=2**70), replace(ENDED, sip_status=2**20), replace(ENDED, underruns=-1),
    UtteranceSpoken(Speaker.AGENT, 5, 4, (), False), utterance(*(f"word{n}" for n in range(200_000)))],
    ids=["bigint", "smallint", "negative", "backwards", "too many words to index"])
async def test_values_that_dont_fit_are_refused_in_one_line(store: Store, event: Event) -> None:
    with pytest.raises(Refused) as raised:
        await store.apply([envelope(event, 1)])
    assert "\n" not in str(raised.value)


async def test_a_zero_character_in_a_foreign_header_doesnt_cost_us_the_call(store: Store) -> None:
    await store.apply([envelope(replace(RECEIVED, caller="sip:a\0b@c"), 1)])
    found = await store.call("call")
    assert found is not None
    assert found.caller == "sip:a\ufffdb@c"


async def test_two_persisters_with_events_of_the_same_calls_dont_deadlock(store: Store, database_url: str) -> None:
    other = Store(database_url)
    numbers = list(range(12))
    chance = random.Random(3)

    async def apply_all(through: Store) -> None:
        for _ in range(5):
            order = chance.sample(numbers, len(numbers))
            await through.apply([replace(each, call=f"call {n}") for n in order for each in WHOLE_CALL])

    try:
        await asyncio.gather(*(apply_all(through) for through in (store, other, store, other)))
    finally:
        await other.close()
    assert await store.call("call 7") == replace(WHOLE_ROW, id="call 7")
    assert await heard(store, "call 7") == WHOLE_TRANSCRIPT


async def test_calls_are_listed_newest_first_page_by_page(store: Store) -> None:
    for n in range(5):
        await store.apply([envelope(RECEIVED, 1, call=f"call {n}", seconds=n // 2)])
    first = await store.calls(2)
    second = await store.calls(2, before=first[-1].id)
    third = await store.calls(2, before=second[-1].id)
    assert [row.id for row in (*first, *second, *third)] == ["call 4", "call 3", "call 2", "call 1", "call 0"]
    assert await store.calls(2, before="call 0") == ()
    for limit in (0, -1, 1001):
        with pytest.raises(ValueError, match="limit"):
            await store.calls(limit)


@pytest.mark.parametrize(("text", "found"), [
    ("morning", ["good morning Ann"]), ("GOOD ann", ["good morning Ann"]), ('"good morning"', ["good morning Ann"]),
    ('"morning good"', []), ("goodbye or hello", ["hello", "goodbye"]), ("good -ann", []), ("evening", []),
    ("'); DROP TABLE calls; --", []), ("", []), ("\0", [])])
async def test_what_was_said_is_found_by_its_words(store: Store, text: str, found: list[str]) -> None:
    await store.apply(WHOLE_CALL)
    assert [match.text for match in await store.search(text)] == found


async def test_search_knows_letters_beyond_ascii(store: Store) -> None:
    await store.apply([envelope(utterance("Über", "Straße"), 1)])
    assert [match.call for match in await store.search("über straße")] == ["call"]


async def test_search_uses_the_index(store: Store, database_url: str) -> None:
    await store.apply(WHOLE_CALL)
    with closing(psycopg.connect(database_url)) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute("EXPLAIN SELECT id FROM utterances WHERE tsv @@ websearch_to_tsquery('simple', 'a')")
        assert "utterances_search" in str(plan.fetchall())


async def test_with_a_call_all_that_belongs_to_it_is_deleted(store: Store, database_url: str) -> None:
    await store.apply(WHOLE_CALL)
    with closing(psycopg.connect(database_url, autocommit=True)) as connection:
        connection.execute("DELETE FROM calls")
        for table in Base.metadata.sorted_tables:
            assert connection.execute(f"SELECT count(*) FROM {table.name}".encode()).fetchone() == (0,)


async def test_an_unknown_call_has_no_row_and_said_nothing(store: Store) -> None:
    assert await store.call("nobody") is None
    assert await store.utterances("nobody") == ()


async def test_without_postgres_there_is_one_line(tmp_path: Path) -> None:
    url = f"postgresql://tandem@/tandem?host={tmp_path}"
    store = Store(url)
    for work in (store.apply(WHOLE_CALL), store.call("call"), store.calls(), store.search("a")):
        with pytest.raises(DatabaseAway) as raised:
            await work
        assert "\n" not in str(raised.value)
    await store.close()
    with pytest.raises(DatabaseAway):
        upgrade(url)
    with pytest.raises(StoreError, match="database URL: not in the form"):
        Store("not a url")


def test_an_upgraded_database_is_what_the_tables_say(new_database_url: str) -> None:
    upgrade(new_database_url)
    upgrade(new_database_url)
    engine = create_engine(make_url(new_database_url).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_roles_that_upgrade_at_once_wait_for_each_other(new_database_url: str) -> None:
    with ThreadPoolExecutor(4) as roles:
        for upgraded in [roles.submit(upgrade, new_database_url) for _ in range(4)]:
            upgraded.result()
    with closing(psycopg.connect(new_database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (0,)


@given(arrived=st.lists(st.integers(1, 30)), sequence=st.integers(0, 10), floor=st.integers(1, 15))
def test_the_watermark_covers_exactly_what_has_come_without_a_gap(
        arrived: list[int], sequence: int, floor: int) -> None:
    mark, ahead = advance(sequence, arrived, floor)
    assert mark >= max(sequence, floor - 1)
    assert all(each in arrived for each in range(max(sequence, floor - 1) + 1, mark + 1))
    assert mark + 1 not in arrived
    assert ahead == sorted({each for each in arrived if each > mark})


async def test_a_recording_has_a_row_whichever_event_comes_first(store: Store) -> None:
    kept = RecordingKept("s3://bucket/call.flac", "flac", 61.5, 1_000_000, 0.0, 2.5)
    later = Envelope("call", "bridge-recordings", 1, 1, AT + timedelta(seconds=90), kept)
    await store.apply([later])
    for _ in range(2):
        await store.apply([envelope(RECEIVED, 1, fence=0), envelope(ENDED, 1), later])
    assert await store.recording("call") == RecordingRow(
        "call", AT + timedelta(seconds=90), "s3://bucket/call.flac", "flac", 61.5, 1_000_000, 0.0, 2.5)
    elsewhere = replace(later, fence=2, event=replace(kept, url="kept/call.flac"))
    await store.apply([elsewhere])
    await store.apply([later])
    row = await store.recording("call")
    assert row is not None
    assert row.url == "kept/call.flac"
    assert await store.recording("another") is None


async def test_what_was_measured_last_is_kept(store: Store) -> None:
    def measured(count: int, *names: str) -> CallMeasured:
        return CallMeasured(tuple(Measure(name, count, 0.1 * count, 0.05, 0.08, None) for name in names))

    first, last = envelope(measured(10, "whole", "step"), 4), envelope(measured(20, "whole", "step", "gap"), 5)
    await store.apply([envelope(RECEIVED, 1, fence=0), last])
    await store.apply([first])
    assert await store.measures("call") == {name: Measure(name, 20, 2.0, 0.05, 0.08, None)
                                            for name in ("whole", "step", "gap")}
    assert await store.measures("another") == {}


async def test_what_was_wanted_of_a_call_is_kept_in_the_order_in_which_it_took_effect(store: Store) -> None:
    def taken(id: str, first_k: int, outcome: str = "held") -> ControlTaken:
        return ControlTaken(id, "hold", "", True, "ann", AT, outcome, first_k, first_k + 3, "")

    come = [envelope(RECEIVED, 1, fence=0), envelope(taken("b", 30), 1), envelope(taken("a", 20), 2),
            envelope(taken("b", 30, "superseded"), 3)]
    await store.apply(come)
    await store.apply(list(reversed(come)))
    assert await store.controls("call") == (
        ControlRow("a", "hold", "", True, "ann", AT, "held", 20, 23, ""),
        ControlRow("b", "hold", "", True, "ann", AT, "superseded", 30, 33, ""))
    assert await store.controls("other") == ()


async def test_how_a_call_moved_is_kept_once_for_each_lease(store: Store) -> None:
    first, second = CallMoved("w1", "w2", "closed", 300, 0.4, 310), CallMoved("w2", "w3", "draining", 600, 0.2, 620)
    come = [envelope(RECEIVED, 1, fence=0), envelope(second, 2, fence=3), envelope(first, 2, fence=2)]
    await store.apply(come)
    await store.apply(come)
    assert await store.moves("call") == (MoveRow(AT, "w1", "w2", "closed", 300, 0.4, 310),
                                         MoveRow(AT, "w2", "w3", "draining", 600, 0.2, 620))
