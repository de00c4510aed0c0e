"""Keys and machines' tones in sound: found in all that the standards allow, and not in speech."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from media.answerer import Answerer
from media.audio import SAMPLE_RATE, Samples, chunks, from_pcm16, read_audio, to_pcm16
from media.tones import COLUMNS, KEYS, ROWS, Beep, Keypad

ALL_KEYS = "123A456B789C*0#D"


def tone(hertz: float, seconds: float, amplitude: float = 0.2) -> Samples:
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def key(name: str, seconds: float, amplitude: float, twist_db: float, off: float) -> Samples:
    [(row, column)] = [(row, line.index(name)) for row, line in enumerate(KEYS) if name in line]
    return (tone(ROWS[row] * (1 + off), seconds, amplitude * 10 ** (twist_db / 20))
            + tone(COLUMNS[column] * (1 - off), seconds, amplitude))


def keys_in(samples: Samples) -> str:
    keypad = Keypad()
    return "".join(found for chunk in chunks(to_pcm16(samples)) if (found := keypad.hear(from_pcm16(chunk))))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Some minutes of speech in several voices."""
    folder = tmp_path_factory.mktemp("speech")
    text = Path("docs/operators.md").read_text()[:1500]
    voices = ("en-us", "en-gb+f3", "de+m3", "en-us+f1")
    for voice in voices:
        subprocess.run(["espeak-ng", "-v", voice, "-w", str(folder / f"{voice}.wav"), text], check=True)
    return np.concatenate([read_audio(folder / f"{voice}.wav") for voice in voices])


@pytest.mark.parametrize("seconds", [0.065, 0.1, 0.25])
@pytest.mark.parametrize(("amplitude", "twist_db", "off"), [
    (0.02, 0, 0), (0.15, -6, 0), (0.15, 4, 0.015), (0.4, 0, -0.015)])
def test_each_key_is_heard_once_wherever_it_begins(seconds: float, amplitude: float, twist_db: float, off: float
                                                   ) -> None:
    noise = np.random.default_rng(0)
    for begins in (0, 137, 311):
        pieces = [piece for name in ALL_KEYS
                  for piece in (key(name, seconds, amplitude, twist_db, off), silence(0.065))]
        samples = np.concatenate([silence(0.1), np.zeros(begins, np.float32), *pieces, silence(0.1)])
        assert keys_in(samples + noise.normal(0, 0.001, samples.size).astype(np.float32)) == ALL_KEYS


def test_a_key_that_is_pressed_twice_counts_twice_and_one_that_is_held_once() -> None:
    assert keys_in(np.concatenate([key("5", 0.1, 0.2, 0, 0), silence(0.1), key("5", 2.0, 0.2, 0, 0)])) == "55"


def test_neither_keys_nor_tones_are_heard_in_speech(spoken: Samples) -> None:
    assert spoken.size > 200 * SAMPLE_RATE
    beep = Beep()
    assert keys_in(spoken) == ""
    assert [found for chunk in chunks(to_pcm16(spoken)) if (found := beep.hear(from_pcm16(chunk)))] == []


@pytest.mark.parametrize("hertz", [440, 1000, 1400, 2100])
def test_a_tone_is_told_when_it_ends_with_its_length(hertz: float) -> None:
    beep = Beep()
    samples = np.concatenate([silence(0.3), tone(hertz, 0.4), silence(0.3)])
    [(at, found)] = [(number, found) for number, chunk in enumerate(chunks(to_pcm16(samples)))
                     if (found := beep.hear(from_pcm16(chunk)))]
    assert found == pytest.approx(0.4, abs=0.03)
    assert at * 0.02 == pytest.approx(0.7, abs=0.03)


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.answerer = Answerer(lambda who, why: self.said.append(who), lambda why: self.said.append("records"))

    def hear(self, *parts: Samples) -> list[str]:
        for chunk in chunks(to_pcm16(np.concatenate(parts))):
            self.answerer.hear(chunk)
        return self.said


def _words(seconds: float) -> Samples:
    """Something loud that goes on and off as speech does, without long pauses."""
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(1).normal(0, 0.1, at.size)
    return (noise * (np.sin(2 * np.pi * 2 * at) > -0.5)).astype(np.float32)


@pytest.mark.parametrize(("seconds", "then", "said"), [
    (0.5, 1.0, ["person"]), (2.5, 1.0, ["person"]), (5.0, 1.0, ["machine"]), (5.0, 3.0, ["machine", "records"]),
    (0.0, 5.0, ["person"]),
])
def test_who_says_little_and_waits_is_a_person_who_talks_on_a_machine(
    seconds: float, then: float, said: list[str],
) -> None:
    assert Told().hear(silence(0.3), _words(seconds), silence(then)) == said


def test_who_seemed_a_person_and_then_sounds_a_tone_or_says_a_machines_words_is_a_machine() -> None:
    told = Told()
    assert told.hear(_words(0.6), silence(1.0), tone(1000, 0.3), silence(0.2)) == [
        "person", "machine", "records"]
    told = Told()
    told.hear(_words(0.6), silence(1.0))
    told.answerer.heard("You have reached the voicemail of")
    assert told.said == ["person", "machine"]
