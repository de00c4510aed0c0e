"""Words as they are compared: without case and punctuation; and how many of them were heard wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.train.domain.distance import edit_distance

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # letters and digits, with apostrophes within: "o'clock", "I'd"


def normalised(text: str) -> list[str]:
    """The text's words in lower case, without punctuation; a hyphen parts two words."""
    return _WORD.findall(text.replace("\u2019", "'").lower())


@dataclass(frozen=True)
class WordErrors:
    """Words inserted, left out or replaced, among `words` that were said. They add up over texts."""

    errors: int = 0
    words: int = 0

    @classmethod
    def of(cls, said: str, heard: str) -> WordErrors:
        expected = normalised(said)
        return cls(edit_distance(expected, normalised(heard)), len(expected))

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """The word error rate; above 1 where more was heard wrong than was said. 0 where nothing was."""
        return self.errors / max(1, self.words)
