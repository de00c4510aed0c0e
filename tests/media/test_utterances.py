from __future__ import annotations

import pytest
from call_fakes import word

from calls import wire
from calls.events import Speaker, UtteranceSpoken
from media.audio import FRAME_S, FRAME_SAMPLES
from media.playout import Heard
from media.utterances import PAUSE_S, WORDS_IN_UTTERANCE, Utterances

LATE_S = 0.2  # the agent's frame k is heard so long after k * 80 ms
LATE = round(LATE_S * 24000)


class Call:
    """Feeds utterances as a session does: frame by frame, what is heard LATE_S after its own time."""

    def __init__(self, largest_delay: int = 1) -> None:
        self.utterances = Utterances(largest_delay)
        self.k = 0
        self.spoken: list[UtteranceSpoken] = []

    def take(self, text: wire.Text) -> None:
        self.spoken += self.utterances.take(text)

    def until(self, k: int) -> list[UtteranceSpoken]:
        """Frames up to k are heard; what was given out for it."""
        before = len(self.spoken)
        while self.k <= k:
            heard = Heard(self.k, self.k * FRAME_SAMPLES + LATE)
            self.spoken += self.utterances.advance([heard], self.k * FRAME_S + LATE_S)
            self.k += 1
        return self.spoken[before:]


def test_a_word_is_heard_where_the_playout_put_its_frames_after_the_models_delay() -> None:
    call = Call(largest_delay=2)
    call.take(word("hello", 5, 7))
    call.until(12)
    [said] = call.spoken
    assert said.words[0].start_s == pytest.approx((5 + 2.5) * FRAME_S + LATE_S)
    assert said.words[0].end_s == pytest.approx((7 + 2 + 1.5) * FRAME_S + LATE_S)
    assert (said.first_k, said.last_k, said.final) == (5, 7, False)


def test_a_word_is_not_given_out_before_it_is_heard() -> None:
    call = Call()
    call.take(word("hello", 5, 7))
    assert call.until(7) == []
    assert [said.text for said in call.until(8)] == ["hello"]


def test_an_utterance_grows_word_by_word_and_is_final_after_a_second_without_one() -> None:
    call = Call()
    call.take(word("good", 5, 7))
    call.until(10)
    call.take(word("morning", 8, 12))
    call.until(40)
    assert [(said.text, said.final) for said in call.spoken] == [
        ("good", False), ("good morning", False), ("good morning", True)]
    assert {said.first_k for said in call.spoken} == {5}


def test_a_pause_of_a_second_begins_a_new_utterance() -> None:
    call = Call()
    call.take(word("yes", 5, 7))
    call.take(word("no", 7 + 14, 7 + 16))
    call.until(60)
    assert [(said.first_k, said.text) for said in call.spoken if said.final] == [(5, "yes"), (21, "no")]


def test_a_shorter_pause_does_not() -> None:
    call = Call()
    call.take(word("yes", 5, 7))
    call.take(word("no", 7 + 12, 7 + 16))
    call.until(60)
    assert [(said.first_k, said.text) for said in call.spoken if said.final] == [(5, "yes no")]


def test_a_word_that_has_begun_is_waited_for() -> None:
    call = Call()
    call.take(word("well", 5, 7))
    call.take(wire.Text(12, "agent", piece="ex"))
    call.until(26)
    assert not call.spoken[-1].final
    call.take(word("extraordinary", 12, 25))
    call.until(60)
    assert [said.text for said in call.spoken if said.final] == ["well extraordinary"]


def test_a_word_whose_frames_never_came_is_not_part_of_what_was_heard() -> None:
    utterances = Utterances(1)
    utterances.take(word("lost", 5, 7))
    spoken = [said for k in (1, 2, 3, 20, 21) for said in utterances.advance([Heard(k, k * 1920)], k * FRAME_S)]
    assert spoken + utterances.finish() == []


def test_at_the_end_a_word_that_was_heard_in_part_counts_and_one_that_was_not_does_not() -> None:
    call = Call()
    call.take(word("half", 5, 9))
    call.take(word("unheard", 20, 22))
    call.until(7)
    [said] = call.utterances.finish()
    assert (said.text, said.final) == ("half", True)
    assert said.words[0].end_s == pytest.approx(8.5 * FRAME_S + LATE_S)


def test_the_callers_words_are_timed_by_their_own_frames() -> None:
    call = Call()
    call.take(wire.Text(9, "caller", word="hi", first_k=5, last_k=7))
    call.until(40)
    assert [(said.speaker, said.final) for said in call.spoken] == [(Speaker.CALLER, False), (Speaker.CALLER, True)]
    assert call.spoken[-1].words[0].start_s == pytest.approx(5.5 * FRAME_S)


def test_speech_without_a_pause_is_cut_into_bounded_utterances() -> None:
    call = Call()
    for number in range(WORDS_IN_UTTERANCE + 1):
        call.take(word("la", 2 * number, 2 * number + 1))
        call.until(2 * number + 2)
    assert max(len(said.words) for said in call.spoken) == WORDS_IN_UTTERANCE
    assert PAUSE_S == 1.0


def test_a_word_that_two_workers_tell_is_one() -> None:
    call = Call()
    call.take(word("hello", 5, 7))
    call.take(word("hello", 5, 8))
    call.take(word("there", 9, 10))
    call.until(30)
    assert [one.text for one in call.spoken[-1].words] == ["hello", "there"]
