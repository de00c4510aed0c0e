"""How long calls are kept, and what is never kept of what is said in them: the rules, and card numbers (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as checked

CARD_DIGITS = range(13, 20)  # of a payment card's number (ISO/IEC 7812)
CARD = "card number"
MARGIN_S = 0.25  # around redacted words, in which the recording is silent, too
_FORBID = ConfigDict(extra="forbid")

Days = Annotated[int, Field(ge=1, le=36500)]


@checked(frozen=True, config=_FORBID)
class Pattern:
    """A regular expression of PostgreSQL's, without regard to case, within an utterance; `name` stands in its place."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_ -]{1,40}$")]
    regex: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


@checked(frozen=True, kw_only=True, config=_FORBID)
class Retention:
    """Days after a call for which it, its recording and its token log are kept (none: for ever); what is redacted in
    words, search and sound a minute after a call's end."""

    calls_days: Days | None = None
    recordings_days: Days | None = None
    token_logs_days: Days | None = None
    card_numbers: bool = False
    patterns: Annotated[tuple[Pattern, ...], Field(max_length=50)] = ()

    @model_validator(mode="after")
    def _are_told_apart(self) -> Self:
        names = [pattern.name for pattern in self.patterns]
        if len(set(names)) < len(names):
            raise ValueError("patterns: two have one name")
        return self

    @property
    def redacts(self) -> bool:
        return self.card_numbers or bool(self.patterns)


RETENTION: TypeAdapter[Retention] = TypeAdapter(Retention)


@dataclass(frozen=True)
class Found:
    """Words `first` to `last` of a side, which are to be redacted as `name`."""

    first: int
    last: int
    name: str


_UNITS = {"zero": "0", "oh": "0", "o": "0", "null": "0", "one": "1", "two": "2", "to": "2", "too": "2", "three": "3",
          "four": "4", "for": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "ate": "8", "nine": "9"}
_TEENS = {name: str(10 + at) for at, name in enumerate((
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"))}
_TENS = {name: str(2 + at) for at, name in enumerate((
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"))}
_TIMES = {"double": 2, "triple": 3}
_BETWEEN = {"um", "uh", "er", "dash", "hyphen", "space", "then", "and", "hundred", ""}
_MOST_BETWEEN = 2  # words that may come between two digits
_WEAK = {"to", "too", "for", "ate", "o", "oh"}  # digits only after others: no number begins with them


def card_numbers(words: Sequence[str]) -> Iterator[Found]:
    """Where somebody says a number with as many digits as a card's, in digits or in English words. Whether its check
    digit is right isn't asked: one digit may be misheard."""
    at = 0
    while at < len(words):
        last, digits = _number_from(words, at)
        if len(digits) in CARD_DIGITS or len(digits) > CARD_DIGITS[-1]:
            yield Found(at, last, CARD)
        at = max(at, last) + 1


def _number_from(words: Sequence[str], begin: int) -> tuple[int, str]:
    """The last word of the number that begins here, and its digits; none where none does."""
    digits, times, tens = "", 1, ""
    last, between = begin, 0
    for at in range(begin, len(words)):
        said = re.sub(r"[^\w-]", "", words[at].lower())
        parts = [part for part in re.split(r"[-_]", said) if part] or [""]
        found = ""
        for part in parts:
            if part.isdecimal():
                found, tens, times = found + tens + part * times, "", 1
            elif part in _UNITS and not (begin == at and part in _WEAK):
                found, tens, times = found + (tens[:1] + _UNITS[part]) * times, "", 1
            elif part in _TEENS:
                found, tens, times = found + tens + _TEENS[part] * times, "", 1
            elif part in _TENS:
                found, tens = found + tens, _TENS[part] + "0"
            elif part in _TIMES:
                times = _TIMES[part]
            elif part not in _BETWEEN:
                return last, digits + tens
        if found or tens or times > 1:
            digits, last, between = digits + found, at, 0
        elif begin == at or (between := between + 1) > _MOST_BETWEEN:
            break
    return last, digits + tens
