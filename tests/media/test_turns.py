"""Turns of a conversation, told from the loudness of both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from calls.events import Measure
from media.audio import CHUNK_S
from media.turns import Turns

Spans = Sequence[tuple[float, float]]  # in seconds: when a side speaks


def measured(agent: Spans, caller: Spans, *, noise: float = 0.0, seconds: float = 20.0) -> dict[str, Measure]:
    turns, generator = Turns(), np.random.default_rng(0)

    def rms(spans: Spans, at_s: float, around: float) -> float:
        speaks = any(begin - 1e-9 <= at_s < end - 1e-9 for begin, end in spans)
        return 0.05 if speaks else around * float(generator.uniform(0.8, 1.2))

    for tick in range(round(seconds / CHUNK_S)):
        at_s = tick * CHUNK_S
        turns.hear(tick, rms(agent, at_s, 0.0), rms(caller, at_s, noise))
    return {measure.name: measure for measure in turns.measures()}


def test_an_answer_comes_so_long_after_the_callers_last_sound() -> None:
    found = measured(agent=[(0.2, 2.0), (5.5, 8.0)], caller=[(3.0, 5.0)])
    assert (found["response"].count, found["gap"].count) == (1, 1)
    assert found["response"].p50_s == pytest.approx(0.5, abs=0.03)
    assert found["gap"].p50_s == pytest.approx(1.0, abs=0.03)
    assert (found["interruption"].count, found["backchannel"].count, found["overlap"].total_s) == (0, 0, 0)


def test_a_callers_noise_is_no_speech() -> None:
    found = measured(agent=[(0.2, 2.0), (5.5, 8.0)], caller=[(3.0, 5.0)], noise=0.008)  # -42 dBFS
    assert found["response"].count == 1
    assert found["response"].p50_s == pytest.approx(0.5, abs=0.05)


def test_a_pause_within_a_sentence_ends_nothing() -> None:
    found = measured(agent=[(6.0, 8.0)], caller=[(3.0, 4.0), (4.2, 5.5)])
    assert found["response"].count == 1
    assert found["response"].p50_s == pytest.approx(0.5, abs=0.03)


def test_what_comes_too_late_or_unasked_answers_nothing() -> None:
    assert measured(agent=[(12.0, 13.0)], caller=[(3.0, 5.0)])["response"].count == 0
    assert measured(agent=[(1.0, 2.0), (4.0, 5.0)], caller=[])["response"].count == 0


def test_an_interrupted_agent_yields_after_so_long() -> None:
    found = measured(agent=[(1.0, 4.4)], caller=[(4.0, 6.5)])
    assert (found["interruption"].count, found["yield"].count, found["backchannel"].count) == (1, 1, 0)
    assert found["yield"].p50_s == pytest.approx(0.4, abs=0.03)
    assert found["overlap"].total_s == pytest.approx(0.4 + 0.3, abs=0.08)  # an end is known after a while


def test_an_agent_that_goes_on_over_the_caller_was_interrupted_and_did_not_yield() -> None:
    found = measured(agent=[(1.0, 12.0)], caller=[(4.0, 9.0)])
    assert (found["interruption"].count, found["yield"].count) == (1, 0)


def test_a_back_channel_stops_nobody_and_is_no_interruption() -> None:
    found = measured(agent=[(1.0, 8.0)], caller=[(4.0, 4.5)])
    assert (found["backchannel"].count, found["interruption"].count, found["yield"].count) == (1, 0, 0)


def test_a_click_is_no_speech() -> None:
    found = measured(agent=[(1.0, 8.0)], caller=[(4.0, 4.04)])
    assert (found["backchannel"].count, found["overlap"].total_s) == (0, 0)
