"""How fast calls were: counts of durations, over time and by what carried the calls, from a real Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls.events import (
    BINS_S,
    CallAnswered,
    CallLeased,
    CallMeasured,
    CallReceived,
    Envelope,
    Transport,
)
from calls.latencies import MEASURED, PERIODS, Spread, Wanted, bounds_s, report
from calls.store import Store
from media.latency import Histogram

NOW = datetime(2026, 11, 30, 9, 10, tzinfo=UTC)


async def write(store: Store, call: str, minutes_ago: float, *response_s: float, transport: Transport = "sip",
                agent: str = "agent", worker: str = "worker-1") -> None:
    histogram = Histogram()
    for seconds in response_s:
        histogram.add(seconds)
    at = NOW - timedelta(minutes=minutes_ago)
    events = (CallReceived(transport, "inbound", "ann", "agent", call, "b", agent), CallLeased("nano", worker, "e"),
              CallAnswered("PCMU"), CallMeasured((histogram.measure("response"), Histogram().measure("gap"))))
    await store.apply([Envelope(call, "b", 1, number, at, event) for number, event in enumerate(events, 1)])


@given(st.lists(st.floats(0, 3), min_size=1, max_size=50), st.sampled_from((0.0, 0.5, 0.95, 0.99, 1.0)))
def test_a_quantile_lies_in_the_bin_of_the_duration_that_it_is(durations: list[float], share: float) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    spread = Spread(histogram.measure("x").bins)
    assert spread.count == len(durations)
    exact, told = histogram.quantile(share), spread.quantile(share)
    assert exact is not None
    assert told is not None
    low_s, high_s = next(bounds_s(bin) for bin in range(len(BINS_S) + 1) if exact < bounds_s(bin)[1])
    assert low_s <= told <= high_s


def test_nothing_has_no_quantile() -> None:
    assert Spread().quantile(0.5) is None
    assert Spread.of_all([]) == Spread()
    assert Histogram().measure("x").bins == ()


async def test_a_report_tells_all_turns_by_step_and_carrier_and_the_worst_calls(store: Store) -> None:
    await write(store, "old", 25 * 60, 1.9)  # before the day
    await write(store, "a", 130, 0.45, 0.45, 0.55, worker="worker-2")
    await write(store, "b", 20, 0.75, transport="webrtc", agent="night")
    await write(store, "c", 10, 0.65)
    await write(store, "silent", 5)
    told = await report(store, Wanted(), NOW)
    assert (told.calls, told.spread.count) == (3, 5)
    assert len(told.moments) == 24
    assert told.moments[-1].at == NOW.replace(minute=0)
    assert [(24 - place, moment.calls, moment.spread.count) for place, moment in enumerate(told.moments) if moment.calls
            ] == [(3, 1, 3), (2, 1, 1), (1, 1, 1)]
    p50 = told.moments[-1].spread.quantile(0.5)
    assert p50 is not None
    assert 0.6 <= p50 <= 0.7
    assert [(one.by, one.name, one.calls, one.spread.count) for one in told.carried] == [
        ("protocol", "sip", 2, 4), ("protocol", "webrtc", 1, 1), ("agent", "agent", 2, 4), ("agent", "night", 1, 1),
        ("worker", "worker-1", 2, 2), ("worker", "worker-2", 1, 3)]
    assert [(slow.call, slow.worker, slow.count) for slow in told.worst] == [
        ("b", "worker-1", 1), ("c", "worker-1", 1), ("a", "worker-2", 3)]


@pytest.mark.parametrize(("wanted", "calls"), [
    (Wanted(protocol="webrtc"), 1), (Wanted(agent="night"), 1), (Wanted(worker="worker-2", period="week"), 1),
    (Wanted(worker="worker-2", agent="night"), 0), (Wanted(period="hour"), 1), (Wanted(period="week"), 3),
    (Wanted(measure="gap"), 0), (Wanted(agent="\0"), 0)])
async def test_a_report_is_of_what_was_asked_for(store: Store, wanted: Wanted, calls: int) -> None:
    await write(store, "a", 36 * 60, 0.5, worker="worker-2")
    await write(store, "b", 70, 0.5, transport="webrtc", agent="night")
    await write(store, "c", 10, 0.5)
    told = await report(store, wanted, NOW)
    assert told.calls == calls
    assert told.since > NOW - timedelta(seconds=PERIODS[wanted.period][0])
    assert sum(moment.calls for moment in told.moments) == calls


def test_each_period_is_whole_steps_and_each_measure_is_one_that_has_a_distribution() -> None:
    assert all(length_s % step_s == 0 for length_s, step_s in PERIODS.values())
    assert {"response", "whole", "step"} <= set(MEASURED)
    assert list(BINS_S) == sorted(set(BINS_S))
