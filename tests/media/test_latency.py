"""A frame's way, hop by hop."""

from __future__ import annotations

import pytest

from calls.events import HOPS, Measure
from media.latency import FRAMES_ON_THEIR_WAY, Histogram, Latency


def by_name(latency: Latency) -> dict[str, Measure]:
    return {measure.name: measure for measure in latency.measures()}


def frame(latency: Latency, k: int, *, received: float, bridge: float = 0.002, link: float = 0.001, wait: float = 0.004,
          step: float = 0.015, playout: float = 0.030) -> None:
    sent = received + bridge
    back = sent + link + wait + step
    latency.received(k, received)
    latency.sent(k, sent)
    latency.stepped(k, wait, step)
    latency.back(k, back)
    latency.heard(k, back + playout)


def test_each_hop_has_its_time_and_together_they_are_the_whole() -> None:
    latency = Latency()
    for k in range(100):
        frame(latency, k, received=0.08 * k, step=0.015 if k < 97 else 0.075)
    hops = by_name(latency)
    assert tuple(hops) == HOPS
    wanted = {"bridge": 2.0, "link": 1.0, "wait": 4.0, "step": 15.0, "playout": 30.0, "whole": 52.0}
    for name, milliseconds in wanted.items():
        assert hops[name].count == 100
        assert hops[name].p50_s == pytest.approx(milliseconds / 1000, abs=0.0006)
    assert hops["step"].p95_s == pytest.approx(0.015, abs=0.0006)
    assert hops["step"].p99_s == pytest.approx(0.075, abs=0.0006)
    assert sum(hops[name].total_s for name in HOPS[:-1]) == pytest.approx(hops["whole"].total_s, abs=0.01)


def test_a_frame_that_lacks_a_mark_counts_in_what_it_has() -> None:
    latency = Latency()
    latency.received(0, 1.0)
    latency.heard(0, 1.1)
    latency.heard(7, 2.0)  # never received
    counts = {name: measure.count for name, measure in by_name(latency).items()}
    assert counts == {"bridge": 0, "link": 0, "wait": 0, "step": 0, "playout": 0, "whole": 1}
    assert by_name(latency)["bridge"].p50_s is None


def test_what_is_never_heard_is_forgotten() -> None:
    latency = Latency()
    for k in range(10 * FRAMES_ON_THEIR_WAY):
        latency.received(k, 0.08 * k)
    latency.heard(0, 100.0)
    assert by_name(latency)["whole"].count == 0
    latency.heard(10 * FRAMES_ON_THEIR_WAY - 1, 100.0)
    assert by_name(latency)["whole"].count == 1


def test_quantiles_are_to_half_a_millisecond_and_bounded() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 101):
        histogram.add(milliseconds / 1000)
    histogram.add(1e9)
    histogram.add(-1.0)
    assert histogram.quantile(0.5) == pytest.approx(0.050, abs=0.001)
    assert histogram.quantile(0.0) == pytest.approx(0.0, abs=0.0006)
    assert histogram.quantile(1.0) == pytest.approx(2.0, abs=0.001)
    assert histogram.count == 102
