"""What a synthesiser gives back, before it is made into `Speech`.

No numpy here: the processes that talk to the synthesisers' libraries are forked once for each utterance and stay small.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Phone = tuple[str, float, float]  # symbol of agent.train.phones, begin and end in seconds


class SpeechError(ValueError):
    """One line that says what can't be spoken, or what is missing for it."""


@dataclass(frozen=True)
class Sounded:
    """One utterance as a synthesiser made it.

    `words`: which of the text's words (counted from 0, split at white space) is heard from when to when; a
    synthesiser may leave out a word that it spoke together with the one before it.
    """

    rate: int  # Hz
    pcm: bytes  # s16le
    words: tuple[tuple[int, float, float], ...]
    phones: tuple[Phone, ...]


def word_offsets(text: str) -> list[int]:
    """Where each word of `text.split()` begins."""
    return [match.start() for match in re.finditer(r"\S+", text)]
