"""What was heard against what was right: words, levels of sound, shares with their uncertainty."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.train.speech import SAMPLE_RATE, Samples

SPEECH_DB = -45.0  # a piece of sound above it is speech (docs: design, "The monologue")
PIECE = SAMPLE_RATE // 50  # 20 ms
PIECE_S = PIECE / SAMPLE_RATE

_NOT_A_LETTER = re.compile(r"[^a-z' ]+")


def words_of(text: str) -> tuple[str, ...]:
    """The words as they sound: lower case, no punctuation."""
    return tuple(_NOT_A_LETTER.sub(" ", text.lower()).split())


def same_words(one: str, other: str) -> bool:
    return words_of(one) == words_of(other)


def word_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Words to put in, leave out or replace, to make one of the other."""
    row = list(range(len(other) + 1))
    for place, word in enumerate(one, 1):
        diagonal, row[0] = row[0], place
        for at, compared in enumerate(other, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (word != compared))
    return row[-1]


def means(heard: str, expected: str, sentences: Iterable[str]) -> bool:
    """Whether what was heard is nearer to the expected sentence than to any other of `sentences`, and like it at all:
    at most half of its words are wrong."""
    said, right = words_of(heard), words_of(expected)
    distance = word_distance(said, right)
    if not said or distance > len(right) / 2:
        return False
    others = (words_of(sentence) for sentence in sentences)
    return all(word_distance(said, other) > distance for other in others if other != right)


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """NaN of none."""
        return self.right / self.of if self.of else math.nan

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Wilson's score interval, of 95 % by default; 0 to 1 of none."""
        if not self.of:
            return 0.0, 1.0
        n, share, z2 = self.of, self.value, z * z
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        low = 0.0 if self.right == 0 else middle - half
        return low, 1.0 if self.right == n else middle + half


def share_of(verdicts: Iterable[bool | None]) -> Share:
    """None: not judged, and not counted."""
    counted = [verdict for verdict in verdicts if verdict is not None]
    return Share(sum(counted), len(counted))


def percentile(values: Sequence[float], percent: float) -> float:
    """NaN of none."""
    return float(np.percentile(values, percent)) if values else math.nan


def loud_pieces(sound: Samples) -> npt.NDArray[np.bool_]:
    """[pieces]: which 20 ms of the sound are speech, by their level alone."""
    whole = sound[:sound.size // PIECE * PIECE].reshape(-1, PIECE).astype(np.float64)
    loud: npt.NDArray[np.bool_] = np.mean(whole * whole, axis=1) > 10 ** (SPEECH_DB / 10)
    return loud


@dataclass(frozen=True)
class Track:
    """A whole call's sound [n] at SAMPLE_RATE, and where in it there is speech."""

    sound: Samples
    loud: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, sound: Samples) -> Track:
        return cls(sound, loud_pieces(sound))

    @property
    def duration_s(self) -> float:
        return self.sound.size / SAMPLE_RATE

    def between(self, begin_s: float, end_s: float) -> Samples:
        begin = max(0, round(begin_s * SAMPLE_RATE))
        return self.sound[begin:max(begin, round(end_s * SAMPLE_RATE))]

    def speech_begins(self, from_s: float, until_s: float = math.inf) -> float | None:
        """When the first piece of speech that lies whole after `from_s` begins; None: there is none till `until_s`."""
        first = max(0, math.ceil(from_s / PIECE_S - 1e-6))
        found = np.flatnonzero(self.loud[first:])
        begin_s = (first + int(found[0])) * PIECE_S if found.size else math.inf
        return begin_s if begin_s < until_s else None

    def is_quiet(self, begin_s: float, end_s: float) -> bool:
        """No speech between these two moments."""
        return self.speech_begins(begin_s, end_s - PIECE_S + 1e-6) is None
