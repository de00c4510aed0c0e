from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from agent.train.phones import PHONES, of_espeak, of_festvox, segments
from agent.train.sounded import Sounded
from agent.train.speech import LEVEL_DB, SAMPLE_RATE, Samples, Speech, SpeechError, Synthesiser, finished, spread_words
from agent.train.voices import AGENT, Manner, Talker, Voice

SENTENCE = "Well, is one of the tables in the garden free at two o'clock, for twenty-two of us?"
FLUTTERING = Talker(Voice("espeak", "gmw/en-GB-scotland+Mike"))  # its sound depends on random numbers


@pytest.fixture(scope="module")
def synthesiser() -> Iterator[Synthesiser]:
    with Synthesiser() as running:
        yield running


@pytest.fixture(scope="module")
def speech(synthesiser: Synthesiser) -> Speech:
    return synthesiser.speak(SENTENCE, AGENT)


def level(sound: Samples) -> float:
    return float(np.sqrt(np.mean(sound.astype(np.float64) ** 2)))


def pitch_hz(sound: Samples) -> float:
    """The median over 40 ms pieces that are loud, by autocorrelation between 70 and 400 Hz."""
    found = []
    for at in range(0, sound.size - 960, 960):
        piece = sound[at:at + 960]
        if level(piece) > level(sound):
            likeness = np.correlate(piece, piece, "full")[959:]
            found.append(SAMPLE_RATE / (60 + int(np.argmax(likeness[60:343]))))
    return float(np.median(found))


def test_every_word_of_the_text_has_its_time_in_order(speech: Speech) -> None:
    assert [text for text, _, _ in speech.words] == SENTENCE.split()
    assert all(begin < end for _, begin, end in speech.words)
    assert all(end <= begin + 1e-3 for (_, _, end), (_, begin, _) in pairwise(speech.words))
    assert speech.words[0][1] < 0.05
    assert speech.duration_s - 0.15 < speech.words[-1][2] <= speech.duration_s


def test_words_are_loud_and_the_pause_at_a_comma_is_not(speech: Speech) -> None:
    def span(begin_s: float, end_s: float) -> Samples:
        return speech.pcm[round(begin_s * SAMPLE_RATE):round(end_s * SAMPLE_RATE)]

    (_, begin, end), (_, after, _) = speech.words[:2]
    assert after - end > 0.1
    assert level(span(begin, end)) > 20 * level(span(end + 0.03, after - 0.02))


def test_phonemes_are_of_the_common_alphabet_and_lie_within_words(speech: Speech) -> None:
    assert {symbol for symbol, _, _ in speech.phonemes} <= set(PHONES)
    first = [symbol for symbol, begin, _ in speech.phonemes if begin < speech.words[0][2] - 1e-3]
    assert first == ["w", "eh", "l"]
    for _, begin, end in speech.phonemes:
        assert any(start - 1e-3 <= begin and end <= stop + 1e-3 for _, start, stop in speech.words)


def test_speech_is_as_loud_as_all_speech_and_has_no_silence_around_it(speech: Speech) -> None:
    assert 20 * np.log10(level(speech.pcm)) == pytest.approx(LEVEL_DB, abs=0.1)
    assert np.abs(speech.pcm[:480]).max() > 0.005
    assert np.abs(speech.pcm[-2400:]).max() > 0.005
    assert speech.pcm.dtype == np.float32


def test_silence_around_a_synthesisers_sound_is_cut_off_and_times_go_along() -> None:
    tone = 8000 * np.sin(2 * np.pi * 220 * np.arange(8000) / 16000)
    pcm = np.concatenate([np.zeros(8000), tone, np.zeros(16000)]).astype("<i2").tobytes()
    sounded = Sounded(16000, pcm, ((0, 0.5, 0.7), (1, 0.7, 1.0)), (("ow", 0.5, 0.7), ("w", 0.7, 1.0)))
    speech = finished("oh well", sounded)
    assert speech.duration_s == pytest.approx(0.57, abs=0.01)
    assert speech.words == (("oh", pytest.approx(0.01, abs=0.002), pytest.approx(0.21, abs=0.002)),
                            ("well", pytest.approx(0.21, abs=0.002), pytest.approx(0.51, abs=0.002)))
    assert speech.phonemes[0][1:] == speech.words[0][1:]


def test_a_hiss_before_the_speech_is_cut_off_too() -> None:
    tone = np.concatenate([np.full(8000, 200.0), 8000 * np.sin(2 * np.pi * 220 * np.arange(8000) / 16000)])
    speech = finished("oh", Sounded(16000, tone.astype("<i2").tobytes(), ((0, 0.5, 1.0),), (("ow", 0.5, 1.0),)))
    assert speech.duration_s < 0.56
    assert speech.words[0][1] == pytest.approx(0.04, abs=0.002)


def test_speech_begins_and_ends_without_a_click() -> None:
    loud = np.full(16000, 8000, "<i2").tobytes()
    speech = finished("oh", Sounded(16000, loud, ((0, 0.0, 1.0),), (("ow", 0.0, 1.0),)))
    assert np.abs(speech.pcm[[0, -1]]).max() == 0
    assert np.abs(np.diff(speech.pcm)).max() < 0.02 * np.abs(speech.pcm).max()


def test_a_sentence_sounds_the_same_whatever_was_said_before(synthesiser: Synthesiser) -> None:
    first = synthesiser.speak("is there parking", FLUTTERING)
    for _ in range(2):
        synthesiser.speak("something else altogether", AGENT)
        again = synthesiser.speak("is there parking", FLUTTERING)
        assert np.array_equal(first.pcm, again.pcm)
        assert first.words == again.words


def test_manner_changes_rate_and_pitch(synthesiser: Synthesiser) -> None:
    def spoken(manner: Manner) -> Speech:
        return synthesiser.speak("where can I park my car", Talker(AGENT.voice, manner))

    slow, fast = spoken(Manner(rate=0.8)), spoken(Manner(rate=1.2))
    assert slow.duration_s > 1.25 * fast.duration_s
    low, high = spoken(Manner(semitones=-4)), spoken(Manner(semitones=4))
    assert 6 < 12 * np.log2(pitch_hz(high.pcm) / pitch_hz(low.pcm)) < 10


@pytest.mark.parametrize(("text", "talker", "complaint"), [
    ("...", AGENT, "'...' makes no sound"),
    ("hello", Talker(Voice("espeak", "gmw/en-US+nobody")), "this espeak-ng has no variant 'nobody'"),
    ("hello", Talker(Voice("espeak", "gmw/nowhere+m1")), "this espeak-ng has no voice 'gmw/nowhere"),
])
def test_what_cant_be_spoken_is_named(synthesiser: Synthesiser, text: str, talker: Talker, complaint: str) -> None:
    with pytest.raises(SpeechError, match=re.escape(complaint)):
        synthesiser.speak(text, talker)
    assert synthesiser.speak("hello", AGENT).words  # and the next one is spoken


def test_a_process_that_died_is_said_in_one_line() -> None:
    with Synthesiser() as synthesiser:
        synthesiser.speak("hello", AGENT)
        assert synthesiser._forking is not None
        synthesiser._forking.kill()
        synthesiser._forking.wait()
        with pytest.raises(SpeechError, match="the process that speaks has ended"):
            synthesiser.speak("hello", AGENT)


def test_joined_words_share_their_time_at_the_border_of_two_phones() -> None:
    phones = (("ah", 0.0, 0.1), ("v", 0.1, 0.2), ("dh", 0.2, 0.3), ("ax", 0.3, 0.4), ("t", 0.4, 0.9))
    sounded = Sounded(16000, b"", ((0, 0.0, 0.4), (2, 0.4, 0.9)), phones)
    assert spread_words("of the tables", sounded) == (("of", 0.0, 0.2), ("the", 0.2, 0.4), ("tables", 0.4, 0.9))


def test_a_word_that_comes_before_all_that_were_told_belongs_to_the_first() -> None:
    sounded = Sounded(16000, b"", ((1, 0.2, 0.6),), (("ah", 0.2, 0.5), ("v", 0.5, 0.6)))
    assert spread_words("– so", sounded) == (("–", 0.2, 0.5), ("so", 0.5, 0.6))


def test_more_words_than_phones_share_their_time_by_letters() -> None:
    sounded = Sounded(16000, b"", ((0, 0.0, 0.6),), (("ah", 0.0, 0.6),))
    assert spread_words("a bit", sounded) == (("a", 0.0, pytest.approx(0.15)), ("bit", pytest.approx(0.15), 0.6))


@pytest.mark.parametrize(("mnemonic", "phone"), [
    ("oU", "ow"), ("aI@3", "ay"), ("@L", "l"), ("t#", "t"), ("i@3", "ih"), ("_:", None), ("_", None), ("", None),
])
def test_espeaks_mnemonics_are_read_by_their_longest_known_part(mnemonic: str, phone: str | None) -> None:
    assert of_espeak(mnemonic) == phone


def test_segments_become_phones_without_pauses() -> None:
    assert segments([("pau", 0.2), ("hh", 0.3), ("el", 0.5), ("pau", 0.7)]) == (("hh", 0.2, 0.3), ("l", 0.3, 0.5))


@pytest.mark.parametrize("read", [of_espeak, of_festvox])
def test_an_unknown_phoneme_is_named(read: object) -> None:
    with pytest.raises(SpeechError, match="'ξ'"):
        read("ξ")  # type: ignore[operator]


def test_moved_formants_leave_pitch_and_tempo_as_they_are(synthesiser: Synthesiser) -> None:
    voice = Voice("espeak", "gmw/en-US+m1")

    def centre_hz(sound: Samples) -> float:
        """The middle of its spectrum, by amplitude."""
        spectrum = np.abs(np.fft.rfft(sound))
        return float((spectrum * np.fft.rfftfreq(sound.size, 1 / SAMPLE_RATE)).sum() / spectrum.sum())

    own, higher = (synthesiser.speak(SENTENCE, Talker(voice, Manner(formants=factor))) for factor in (1.0, 1.18))
    assert higher.duration_s == pytest.approx(own.duration_s, rel=0.06)
    assert pitch_hz(higher.pcm) == pytest.approx(pitch_hz(own.pcm), rel=0.08)
    assert centre_hz(higher.pcm) > 1.08 * centre_hz(own.pcm)
    assert [text for text, _, _ in higher.words] == SENTENCE.split()
    assert higher.words[-1][2] == pytest.approx(own.words[-1][2], rel=0.06)
