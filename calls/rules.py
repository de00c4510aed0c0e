"""What an agent does in a call without an operator: rules, each a moment and a control (pure).

    when = "answered"       the call begins: greet (say), or be silent until spoken to (hold)
    when = "caller_spoke"   the caller has said something for the first time, and is done
    when = "silence"        nobody has spoken for `after_s` seconds
    when = "time"           `after_s` seconds after the answer
    when = "words"          the caller says one of `words`, where a model writes down what they say
    when = "broken"         what the agent writes or sounds is no conversation any more (calls/signs.py)
    when = "key"            the caller presses one of `keys` on the telephone

`RuleBook` is fed the call's clock and says which rules are due. Each has its effect `times` times at most; a silence
counts anew once somebody has spoken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked

from calls.controls import Control, ControlRefused
from calls.wire import MAX_LINE

MOST_RULES = 50
LONGEST_S = 86400.0

When = Literal["answered", "caller_spoke", "silence", "time", "words", "key", "broken"]
Does = Literal["speak", "hold", "say", "whisper", "release", "reprime", "hang_up", "keys", "hold_call", "resume_call",
               "transfer"]


@checked(frozen=True)
class Rule:
    """Raises ValueError, one line, for a rule that can't be meant."""

    when: When
    do: Does
    text: Annotated[str, Field(max_length=MAX_LINE)] = ""
    mute: bool = False
    after_s: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None
    words: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=50)] = ()
    times: Annotated[int, Field(ge=1, le=1000)] = 1
    keys: Annotated[str, Field(max_length=16, pattern="^[0-9*#A-D]*$")] = ""
    to: Annotated[str, Field(max_length=256)] = ""  # whom a transfer hands the caller to

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if (self.after_s is not None) != (self.when in ("silence", "time")):
            raise ValueError("after_s belongs to rules of silence and time, which need it")
        if bool(self.words) != (self.when == "words"):
            raise ValueError("words belong to rules of words, which need some")
        if bool(self.keys) != (self.when == "key"):
            raise ValueError("keys belong to rules of a key, which need some")
        if any(not _spoken(words) for words in self.words):
            raise ValueError("words: letters or digits are needed in each")
        try:
            self.control("call", 0).check()
        except ControlRefused as refused:
            raise ValueError(str(refused)) from None
        return self

    def control(self, call: str, number: int) -> Control:
        """What the rule does, in a call; `number` is its place."""
        return Control(call, self.do, self.text, self.mute, by=f"rule {number + 1}: {self.when}", to=self.to)


@dataclass
class RuleBook:
    """One call's rules and how often each has had its effect. The methods return the places of the rules that are due,
    in their order."""

    rules: tuple[Rule, ...]
    _done: list[int] = field(default_factory=list)
    _silent: set[int] = field(default_factory=set)  # those that this silence has made due already
    _heard_in: dict[int, int] = field(default_factory=dict)  # by rule, the utterance that made it due last
    _caller_spoke: bool = False

    def __post_init__(self) -> None:
        self._done = [0] * len(self.rules)

    def answered(self) -> list[int]:
        return self._due(at for at, rule in enumerate(self.rules) if rule.when == "answered")

    def advance(self, now_s: float, quiet_s: float, *, caller_spoke: bool) -> list[int]:
        """The call's clock is at `now_s`, nobody has spoken for `quiet_s`, and the caller has said something by now."""
        due = []
        for at, rule in enumerate(self.rules):
            if rule.when == "time" and not self._done[at] and now_s >= (rule.after_s or 0):
                due.append(at)
            elif rule.when == "silence":
                if quiet_s < (rule.after_s or 0):
                    self._silent.discard(at)
                elif at not in self._silent:
                    self._silent.add(at)
                    due.append(at)
            elif rule.when == "caller_spoke" and caller_spoke and not self._caller_spoke:
                due.append(at)
        self._caller_spoke = self._caller_spoke or caller_spoke
        return self._due(due)

    def heard(self, first_k: int, text: str) -> list[int]:
        """The caller says this, as far as it goes; `first_k` tells one utterance from the next. One makes a rule due
        once."""
        said = f" {_spoken(text)} "
        found = [at for at, rule in enumerate(self.rules) if self._heard_in.get(at) != first_k
                 and any(f" {_spoken(words)} " in said for words in rule.words)]
        self._heard_in.update(dict.fromkeys(found, first_k))
        return self._due(found)

    def pressed(self, key: str) -> list[int]:
        """The caller has pressed this key."""
        return self._due(at for at, rule in enumerate(self.rules) if rule.when == "key" and key in rule.keys)

    def broken(self) -> list[int]:
        """The agent shows a sign of a broken conversation."""
        return self._due(at for at, rule in enumerate(self.rules) if rule.when == "broken")

    def _due(self, places: Iterable[int]) -> list[int]:
        due = [at for at in places if self._done[at] < self.rules[at].times]
        for at in due:
            self._done[at] += 1
        return due


def _spoken(text: str) -> str:
    """Words as they are compared: lower case, apart by single spaces, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))
