"""Times of words and phones found by pocketsphinx, against those that flite tells of its own speech."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from agent.train.alignment import RATE, Aligner
from agent.train.sounded import Sounded, SpeechError
from agent.train.speech import Synthesiser
from agent.train.voices import Talker, Voice

SENTENCES = ("do you have vegetarian options", "sorry, what outfit would be right for your place?",
             "a table for twenty-two people at six o'clock", "could somebody bring a cake")
NEAR_S = 0.05


@pytest.fixture(scope="module")
def synthesiser() -> Iterator[Synthesiser]:
    with Synthesiser() as running:
        yield running


@pytest.fixture(scope="module")
def aligner(synthesiser: Synthesiser) -> Aligner:
    return Aligner.load(synthesiser._pronounced)


def said(synthesiser: Synthesiser, text: str) -> Sounded:
    return synthesiser._ask(text, Talker(Voice("flite", "rms")))


@pytest.mark.parametrize("text", SENTENCES)
def test_words_are_found_where_they_are_said(synthesiser: Synthesiser, aligner: Aligner, text: str) -> None:
    truth = said(synthesiser, text)
    found = aligner(text, Sounded(truth.rate, truth.pcm, (), ()))
    assert found.pcm == truth.pcm
    assert [place for place, _, _ in found.words] == list(range(len(text.split())))
    for (_, begin, end), (_, its_begin, its_end) in zip(found.words[:-1], truth.words[:-1], strict=True):
        assert begin == pytest.approx(its_begin, abs=NEAR_S)
        assert end == pytest.approx(its_end, abs=2 * NEAR_S)  # at a comma, the silence is or isn't of the word
    assert found.words[-1][1] == pytest.approx(truth.words[-1][1], abs=NEAR_S)  # it ends with the sound


def test_phones_are_those_that_are_said_then_schwas_too(synthesiser: Synthesiser, aligner: Aligner) -> None:
    same = total = 0
    for text in SENTENCES:
        truth = said(synthesiser, text)
        found = aligner(text, truth)
        for at in np.arange(0.05, len(truth.pcm) / 2 / truth.rate, 0.01):
            symbols = [next((symbol for symbol, begin, end in sounded.phones if begin <= at < end), None)
                       for sounded in (truth, found)]
            total += symbols[0] is not None
            same += symbols[0] is not None and symbols[0] == symbols[1]
    assert same > 0.75 * total
    schwas = [symbol for symbol, _, _ in aligner(SENTENCES[2], said(synthesiser, SENTENCES[2])).phones]
    assert schwas[:2] == ["ax", "t"], "a table"


def test_a_word_that_the_dictionary_lacks_is_pronounced_as_another_synthesiser_does(
    synthesiser: Synthesiser, aligner: Aligner,
) -> None:
    text = "organising vegtarians"
    found = aligner(text, said(synthesiser, text))
    assert [place for place, _, _ in found.words] == [0, 1]
    assert [symbol for symbol, _, _ in found.phones] == [
        symbol for word in text.split() for symbol in synthesiser._pronounced(word)]


def test_where_phones_come_to_no_end_they_share_their_words_time(
    synthesiser: Synthesiser, aligner: Aligner, monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = said(synthesiser, SENTENCES[0])
    exact = aligner(SENTENCES[0], truth)
    monkeypatch.setattr(Aligner, "_phones_within", lambda *_: None)
    shared = aligner(SENTENCES[0], truth)
    assert shared.words == exact.words
    assert [symbol for symbol, _, _ in shared.phones] == [symbol for symbol, _, _ in exact.phones]
    begins = [begin for _, begin, _ in shared.phones]
    assert begins == sorted(begins)
    (_, _, end), (_, begin, _) = shared.phones[1:3]  # do, you
    assert end == pytest.approx(begin)


def test_words_that_are_not_found_share_the_sound(aligner: Aligner) -> None:
    found = aligner("is there", Sounded(RATE, bytes(2 * RATE // 50), (), ()))
    assert found.words == ((0, 0.0, pytest.approx(0.008)), (1, pytest.approx(0.008), pytest.approx(0.02)))
    assert [symbol for symbol, _, _ in found.phones] == ["ih", "z", "dh", "eh", "r"]


def test_pico_says_the_shortest_of_what_callers_say(synthesiser: Synthesiser) -> None:
    for text in ("you know", "uh", "okay", "no"):
        for voice in ("en-US", "en-GB"):
            speech = synthesiser.speak(text, Talker(Voice("pico", voice)))
            assert [word for word, _, _ in speech.words] == text.split()
            assert speech.words[-1][2] <= speech.duration_s + 1e-3


def test_a_text_without_words_is_refused(aligner: Aligner) -> None:
    with pytest.raises(SpeechError, match=r"'\.\.\.' has no words"):
        aligner("...", Sounded(RATE, bytes(2 * RATE // 50), (), ()))
