"""flite, festival and pico: Debian's libflite1; festival, festvox-kdlpc16k, festvox-us-slt-hts; the package ttspico."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from agent.train.phones import PHONES
from agent.train.speech import SpeechError, Synthesiser
from agent.train.voices import CALLERS, SPLITS, Manner, Talker, Voice

SENTENCE = "Well, is one of the tables free at two o'clock, for twenty-two of us?"
VOICES = [voice for split in SPLITS for voice in CALLERS[split] if voice.family != "espeak"]


@pytest.fixture(scope="module")
def synthesiser() -> Iterator[Synthesiser]:
    with Synthesiser() as running:
        yield running


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: f"{voice.family}-{voice.speaker}")
def test_every_voice_tells_the_times_of_words_and_phonemes(synthesiser: Synthesiser, voice: Voice) -> None:
    speech = synthesiser.speak(SENTENCE, Talker(voice))
    assert [text for text, _, _ in speech.words] == SENTENCE.split()
    assert all(begin < end for _, begin, end in speech.words)
    assert all(end <= begin + 1e-3 for (_, _, end), (_, begin, _) in pairwise(speech.words))
    assert speech.words[0][1] < 0.05
    assert speech.duration_s - 0.15 < speech.words[-1][2] <= speech.duration_s
    assert [symbol for symbol, _, _ in speech.phonemes[:3]] == ["w", "eh", "l"]
    assert {symbol for symbol, _, _ in speech.phonemes} <= set(PHONES)


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: f"{voice.family}-{voice.speaker}")
def test_a_voice_repeats_itself_exactly_and_changes_its_rate(synthesiser: Synthesiser, voice: Voice) -> None:
    usual = synthesiser.speak("is there parking", Talker(voice))
    slow = synthesiser.speak("is there parking", Talker(voice, Manner(rate=0.8)))
    again = synthesiser.speak("is there parking", Talker(voice))
    assert 1.1 < slow.duration_s / usual.duration_s < 1.35
    assert np.array_equal(usual.pcm, again.pcm)


@pytest.mark.parametrize(("voice", "complaint"), [
    (Voice("flite", "nobody"), "this flite has no voice 'nobody'"),
    (Voice("pico", "nobody"), "this pico has no voice 'nobody'"),
    (Voice("festival", "nobody"), "festival can't speak 'hello': SIOD ERROR: unbound variable : voice_nobody"),
])
def test_a_missing_voice_is_named(synthesiser: Synthesiser, voice: Voice, complaint: str) -> None:
    before = synthesiser.speak("is there parking", Talker(VOICES[-1]))
    with pytest.raises(SpeechError, match=re.escape(complaint)):
        synthesiser.speak("hello", Talker(voice))
    assert np.array_equal(synthesiser.speak("is there parking", Talker(VOICES[-1])).pcm, before.pcm)


def test_quotes_in_a_text_are_no_scheme(synthesiser: Synthesiser) -> None:
    text = 'the "big" table'
    assert [word for word, _, _ in synthesiser.speak(text, Talker(VOICES[-1])).words] == text.split()
