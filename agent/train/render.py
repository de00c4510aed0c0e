"""A script -> two tracks of sound, the agent's and the caller's, with the times of all that is said.

The agent's speech begins on frame borders, so that the same sentence is always cut into the same frames and its codes
are nearly the same each time; the caller's begins where it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent.train.acoustics import Condition, heard
from agent.train.script import LineKind, Script, Speaker
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Samples, Speech
from agent.train.voices import AGENT, Talker, draw_caller

Speak = Callable[[str, Talker], Speech]

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
LONGEST_S = 600.0  # of one call: what a script's mistake may cost
_FADE = 480  # samples in which a voice that is cut goes silent: 20 ms

# What people around the caller say.
_BABBLE = (
    "Did you see the game last night? I could not believe the end of it.",
    "So she told him that the train was going to be an hour late again.",
    "We should paint the kitchen before winter, what do you think?",
    "I left my keys on the counter, and then the door fell shut.",
    "They are moving to a bigger place, somewhere closer to the lake.",
    "No, the blue one was much nicer, but it cost twice as much.",
    "My brother is learning to play the trumpet, poor neighbours.",
    "Pass me the salt please, and tell me about your new job.",
)
_BABBLE_TALKERS = 5


@dataclass(frozen=True)
class Utterance:
    """A line of the script as it is heard. `text` is what was said of it: less than the line where it was cut."""

    speaker: Speaker
    text: str
    begin_s: float
    end_s: float
    kind: LineKind
    intent: str | None
    decided: bool
    cut: bool


@dataclass(frozen=True)
class Word:
    """A word that is said, or a phoneme."""

    speaker: Speaker
    text: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class Call:
    """Both tracks [n] at SAMPLE_RATE, a whole number of frames; times in seconds from the begin, in their order."""

    agent: Samples
    caller: Samples
    utterances: tuple[Utterance, ...]
    words: tuple[Word, ...]
    phonemes: tuple[Word, ...]  # of both, symbols of agent.train.phones
    held: tuple[tuple[float, float], ...]  # the agent was forced silent

    @property
    def duration_s(self) -> float:
        return self.agent.size / SAMPLE_RATE


@dataclass(frozen=True)
class _Placed:
    """One line's speech, cut, at its place on the track."""

    begin: int  # samples
    speech: Speech
    cut: bool

    @property
    def end(self) -> int:
        return self.begin + self.speech.pcm.size


def render(
    script: Script, speak: Speak, caller: Talker, condition: Condition, generator: np.random.Generator, *,
    agent: Talker = AGENT,
) -> Call:
    """The call of a script, its caller heard under `condition`. Raises ValueError for a script that makes no call."""
    speeches = [speak(line.text, agent if line.speaker == "agent" else caller) for line in script.lines]
    placed = place(script, speeches)
    ends = [item.end for item in placed]
    frames = math.ceil((max(ends, default=0) + script.tail_s * SAMPLE_RATE) / FRAME_SAMPLES)
    if not 0 < frames * FRAME_S <= LONGEST_S:
        raise ValueError(f"{script.name}: a call of {frames * FRAME_S:.1f} s, not of 0.08 to {LONGEST_S:.0f} s")
    tracks: dict[Speaker, Samples] = {
        "agent": np.zeros(frames * FRAME_SAMPLES, np.float32), "caller": np.zeros(frames * FRAME_SAMPLES, np.float32),
    }
    for line, item in zip(script.lines, placed, strict=True):
        tracks[line.speaker][item.begin:item.end] += item.speech.pcm
    others = babblers(speak, generator) if condition.babble_db is not None else ()
    return Call(
        agent=tracks["agent"],
        caller=heard(tracks["caller"], tracks["agent"], condition, generator, others=others),
        utterances=tuple(_utterances(script, placed)),
        words=tuple(sorted(_words(script, placed), key=lambda word: (word.begin_s, word.end_s))),
        phonemes=tuple(sorted(_phonemes(script, placed), key=lambda phoneme: (phoneme.begin_s, phoneme.end_s))),
        held=_held(script, placed),
    )


def babblers(speak: Speak, generator: np.random.Generator) -> tuple[Samples, ...]:
    """Sentences of a few of training's voices, to make babble of."""
    talkers = [draw_caller("training", generator) for _ in range(_BABBLE_TALKERS)]
    return tuple(speak(text, talkers[place % len(talkers)]).pcm for place, text in enumerate(_BABBLE))


def place(script: Script, speeches: list[Speech]) -> list[_Placed]:
    """Where each line begins, and how much of it is said.

    A line begins `after_s` after the end of the one before it, though never while its own speaker still speaks; the
    agent's begins on the next frame border. A line is cut at the end of the word that lies nearest to `cut_s`; one
    that is over before then isn't cut.
    """
    placed: list[_Placed] = []
    spoken: dict[Speaker, int] = {"agent": 0, "caller": 0}
    end = 0
    for line, whole in zip(script.lines, speeches, strict=True):
        speech = whole if line.cut_s is None else cut(whole, line.cut_s)
        begin = max(0, end + round(line.after_s * SAMPLE_RATE), spoken[line.speaker])
        if line.speaker == "agent":
            begin = -(-begin // FRAME_SAMPLES) * FRAME_SAMPLES
        placed.append(_Placed(begin, speech, cut=speech is not whole))
        end = spoken[line.speaker] = placed[-1].end
    return placed


def cut(speech: Speech, cut_s: float) -> Speech:
    """The speech up to the word's end nearest to `cut_s`, faded out; itself where that is its last word."""
    count = 1 + min(range(len(speech.words)), key=lambda place: abs(speech.words[place][2] - cut_s))
    if count == len(speech.words):
        return speech
    end_s = speech.words[count - 1][2]
    pcm = speech.pcm[:max(1, round(end_s * SAMPLE_RATE))].copy()
    fade = min(_FADE, pcm.size)
    pcm[pcm.size - fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    phonemes = tuple((symbol, begin, min(end, end_s)) for symbol, begin, end in speech.phonemes if begin < end_s)
    return Speech(pcm, speech.words[:count], phonemes)


def _utterances(script: Script, placed: list[_Placed]) -> list[Utterance]:
    return [
        Utterance(
            line.speaker, " ".join(text for text, _, _ in item.speech.words), _seconds(item.begin), _seconds(item.end),
            line.kind, line.intent, line.decided, item.cut,
        )
        for line, item in zip(script.lines, placed, strict=True)
    ]


def _words(script: Script, placed: list[_Placed]) -> list[Word]:
    return [
        Word(line.speaker, text, _later(item.begin, begin_s), _later(item.begin, end_s))
        for line, item in zip(script.lines, placed, strict=True)
        for text, begin_s, end_s in item.speech.words
    ]


def _phonemes(script: Script, placed: list[_Placed]) -> list[Word]:
    return [
        Word(line.speaker, symbol, _later(item.begin, begin_s), _later(item.begin, end_s))
        for line, item in zip(script.lines, placed, strict=True)
        for symbol, begin_s, end_s in item.speech.phonemes
    ]


def _held(script: Script, placed: list[_Placed]) -> tuple[tuple[float, float], ...]:
    """The held spans. Raises ValueError for one that ends before it begins, and if the agent begins to speak in one."""
    spans = []
    for held in script.held:
        begin_s = max(0.0, _later(placed[held.line].end, held.begin_s))
        end_s = _later(placed[held.until].end, held.end_s)
        where = f"{script.name}: the agent is held from {begin_s:.2f} to {end_s:.2f} s"
        if end_s <= begin_s:
            raise ValueError(where)
        for line, item in zip(script.lines, placed, strict=True):
            if line.speaker == "agent" and begin_s <= item.begin / SAMPLE_RATE < end_s:
                raise ValueError(f"{where} and says {line.text!r} at {item.begin / SAMPLE_RATE:.2f} s")
        spans.append((begin_s, end_s))
    return tuple(spans)


def _seconds(samples: int) -> float:
    return round(samples / SAMPLE_RATE, 4)


def _later(begin: int, seconds: float) -> float:
    return round(begin / SAMPLE_RATE + seconds, 4)
