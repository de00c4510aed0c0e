from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.evaluate.judging import Share, Track, means, percentile, same_words, share_of, word_distance, words_of
from agent.train.speech import SAMPLE_RATE

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def sound(*spans: tuple[float, float], seconds: float = 3.0) -> Track:
    """Silence with speech in it."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for begin_s, end_s in spans:
        samples[round(begin_s * SAMPLE_RATE):round(end_s * SAMPLE_RATE)] = 0.05
    return Track.of(samples)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words_of("Casa Tandem, hello.  How's that?") == ("casa", "tandem", "hello", "how's", "that")
    assert same_words("Yes, we can.", "yes we can")
    assert not same_words("Yes, we can.", "Yes, we can not.")


@settings(deadline=None)
@given(WORDS, WORDS)
def test_the_distance_of_words_is_one(one: list[str], other: list[str]) -> None:
    distance = word_distance(one, other)
    assert distance == word_distance(other, one)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    assert (distance == 0) is (one == other)


def test_the_distance_counts_words_put_in_left_out_and_replaced() -> None:
    assert word_distance(["we", "are", "closed", "on", "monday"], ["we", "are", "open", "on", "monday", "now"]) == 2


def test_an_answer_with_slips_still_means_the_same_but_another_answer_does_not() -> None:
    sentences = ["We are closed on Monday.", "We take cash and all cards.", "We are open from noon to eleven."]
    assert means("we are closed Monday", sentences[0], sentences)
    assert not means("we take cash and all cards", sentences[0], sentences)
    assert not means("", sentences[0], sentences)
    assert not means("we were seen by nobody at all", sentences[0], sentences)
    assert not means("the moon is made of cheese", sentences[0], sentences)


@pytest.mark.parametrize(("right", "of", "low", "high"), [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (95, 100, 0.8882, 0.9785),
])
def test_wilsons_interval(right: int, of: int, low: float, high: float) -> None:
    """The middle ones: Newcombe 1998, table I."""
    assert Share(right, of).interval() == pytest.approx((low, high), abs=2e-4)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_the_share_lies_in_its_interval(counts: tuple[int, int]) -> None:
    share = Share(*counts)
    low, high = share.interval()
    assert 0 <= low <= share.value <= high <= 1
    assert low < high


def test_nothing_judged_is_no_share() -> None:
    share = share_of([None, None])
    assert share == Share(0, 0)
    assert math.isnan(share.value)
    assert share.interval() == (0.0, 1.0)
    assert math.isnan(percentile([], 50))
    assert share_of([True, None, False]) == Share(1, 2)


def test_speech_begins_with_its_first_loud_piece() -> None:
    track = sound((1.0, 1.5), (2.0, 2.2))
    assert track.speech_begins(0) == pytest.approx(1.0)
    assert track.speech_begins(1.2) == pytest.approx(1.2)
    assert track.speech_begins(1.5) == pytest.approx(2.0)
    assert track.speech_begins(1.5, until_s=1.9) is None
    assert track.speech_begins(2.3) is None


def test_quiet_is_what_has_no_loud_piece() -> None:
    track = sound((1.0, 1.5))
    assert track.is_quiet(0, 1)
    assert track.is_quiet(1.5, 3)
    assert not track.is_quiet(0, 1.04)
    assert not track.is_quiet(1.4, 3)


def test_the_border_of_speech_is_45_db_below_full_scale() -> None:
    for level_db, loud in ((-44.9, True), (-45.1, False)):
        samples = np.full(480, 10 ** (level_db / 20), np.float32)
        assert Track.of(samples).loud.tolist() == [loud]
