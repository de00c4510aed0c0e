"""What a caller does, turn by turn: drawn by seed, and chosen by what the agent has said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from agent.evaluate.judging import words_of
from agent.train.callers import NOT_A_QUESTION, Caller
from agent.train.callers import Turn as Saying
from agent.train.domain.reader import Domain
from agent.train.domain.reception import CLOSED, QUESTIONS, State, answer, booking_in
from agent.train.domain.slots import BOOKING_SLOTS, SlotName, Slots, draw_booking
from agent.train.timing import speech_seconds

OPENING_S = 3.0  # so long the agent may take to greet before the caller speaks
ANSWER_S = 4.0  # to begin an answer
MOST_BOOKING_TURNS = 10
MOST_REPETITIONS = 2  # of a line that wasn't understood

_READ_BACK = re.compile(r"A table for .*?Is that right\?")


@dataclass(frozen=True)
class Hold:
    """The agent is forced silent: both in seconds after the end of the caller's line; -inf: from before the line."""

    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Turn:
    """What a caller does when the agent has been quiet for `pause_s`, and how they wait for what comes of it.

    An empty `text` says nothing. `into_s`: begins so long after the agent began to speak, in place of after its end;
    `answered`: False: a back-channel, which asks for nothing and after which the agent's answer goes on.
    `speak`: the agent is forced to begin. `listen_s`: how long the agent may take to begin; `stays`: the caller waits
    all of it, whatever the agent does.
    """

    text: str = ""
    expected: str | None = None  # the right answer; None: there is no one right answer
    intent: str | None = None
    pause_s: float = 0.5
    into_s: float | None = None
    answered: bool = True
    hold: Hold | None = None
    speak: bool = False
    listen_s: float = ANSWER_S
    stays: bool = False


OPENING = Turn(pause_s=0.0, listen_s=OPENING_S)  # lets the agent greet


class Plan(Protocol):
    def next(self, heard: str) -> Turn | None:
        """The next turn, once the last was answered with the words `heard` ("": with none). None: hang up."""
        ...

    def into(self) -> Turn | None:
        """What the caller will say into the answer that has just begun, if anything."""
        ...


@dataclass
class Fixed:
    """The same turns whatever the agent says."""

    turns: Sequence[Turn]
    _next: int = 0

    def next(self, heard: str) -> Turn | None:
        while (turn := self._following()) is not None and turn.into_s is not None:
            pass  # there is nothing left that it could be said into
        return turn

    def into(self) -> Turn | None:
        if self._next < len(self.turns) and self.turns[self._next].into_s is not None:
            return self._following()
        return None

    def _following(self) -> Turn | None:
        self._next += 1
        return self.turns[self._next - 1] if self._next <= len(self.turns) else None


@dataclass
class Booking:
    """A table, whatever the agent asks for it; over at the answer to the read-back, or when nothing helps any more.

    `wanted` is what is booked; `read_back` what the agent made of it, None where it never came to that.
    """

    caller: Caller
    wanted: Slots
    read_back: Slots | None = None
    turns: int = 0
    _last: Saying | None = None
    _repeated: int = 0
    _confirmed: bool = False

    def next(self, heard: str) -> Turn | None:
        self.turns += 1
        if self.turns == 1:
            return OPENING
        if self._confirmed or self.turns > MOST_BOOKING_TURNS:
            return None
        found = read_back_in(heard)
        if found is not None:
            self.read_back, self._confirmed = found, True
            right = found == self.wanted
            return self._say(self.caller.say("yes" if right else "no"))
        return self._say(self._reply(heard))

    def into(self) -> Turn | None:
        return None

    def _reply(self, heard: str) -> Saying | None:
        if self._last is None:
            opening = None if self.caller.random.random() < 0.3 else self.caller.say_some("book", self.wanted)
            return opening or self.caller.say("book")
        asked = asked_in(heard)
        if asked is not None:
            self._repeated = 0
            return self.caller.say(asked, {asked: self.wanted[asked]})
        self._repeated += 1
        return self.caller.again(self._last) if self._repeated <= MOST_REPETITIONS else None

    def _say(self, saying: Saying | None) -> Turn | None:
        self._last = saying
        if saying is None:
            return None
        return Turn(saying.text, intent=saying.heard.intent, pause_s=_pause_s(self.caller.random))


def read_back_in(heard: str) -> Slots | None:
    """The booking that the agent's words repeat, where they do."""
    found = _READ_BACK.findall(heard)
    return booking_in(found[-1]) if found else None


def asked_in(heard: str) -> SlotName | None:
    """The slot that the agent's last question is about."""
    said = " ".join(words_of(heard))
    if " ".join(words_of(CLOSED)) in said:
        return "day"
    places = {slot: said.rfind(" ".join(words_of(QUESTIONS[slot]))) for slot in BOOKING_SLOTS}
    last = max(BOOKING_SLOTS, key=lambda slot: places[slot])
    return last if places[last] >= 0 else None


@dataclass
class Planner:
    """Draws plans by seed. `intents` go round in a shuffled order, so that each is asked equally often."""

    domain: Domain
    random: Random
    held_out: bool  # the phrasings
    evenly: bool = False
    _intents: list[str] = field(default_factory=list)

    def questions(self, count: int) -> Fixed:
        """Plain questions, each with its right answer."""
        caller, state, turns = self._caller(), State(), [OPENING]
        for _ in range(count):
            turn, state = self._asked(caller, state, self._intent())
            turns.append(turn)
        return Fixed(turns)

    def booking(self, *, held_out_slots: bool) -> Booking:
        return Booking(self._caller(), draw_booking(self.random, held_out=held_out_slots))

    def interruption(self) -> Fixed:
        """A question, and another one into its answer."""
        caller, state, intent = self._caller(), State(), self._long_intent(2.2)
        first, state = self._asked(caller, state, intent)
        into_s = self.random.uniform(0.8, speech_seconds(first.expected or "") - 1.0)
        second, _ = self._asked(caller, state, self._intent(but=intent))
        return Fixed([OPENING, first, _with(second, into_s=into_s)])

    def backchannel(self) -> Fixed:
        """A question, and "uh huh" into its answer."""
        caller = self._caller()
        first, _ = self._asked(caller, State(), self._long_intent(2.2))
        into_s = self.random.uniform(0.6, speech_seconds(first.expected or "") - 0.8)
        said = self.random.choice(self.domain.manners(held_out=self.held_out).backchannels)
        return Fixed([OPENING, first, Turn(said, into_s=into_s, answered=False)])

    def forced_starts(self, count: int) -> Fixed:
        """The agent is made to speak in silence: before anything was asked, and after answers."""
        caller, state, turns = self._caller(), State(), [OPENING]
        for place in range(count):
            if place:
                asked, state = self._asked(caller, state, self._intent())
                turns.append(asked)
            turns.append(Turn(speak=True, pause_s=self.random.uniform(1.5, 5.0), listen_s=1.5))
        return Fixed(turns)

    def held_silent(self, count: int, after_s: float = 4.0) -> Fixed:
        """Questions asked while the agent may not speak; what it says when it may again is waited for."""
        caller, state, turns = self._caller(), State(), [OPENING]
        for _ in range(count):
            asked, state = self._asked(caller, state, self._intent())
            turns.append(_with(asked, hold=Hold(-math.inf, after_s)))
        return Fixed(turns)

    def held(self, count: int, held_s: float) -> Fixed:
        """Questions whose answers are held back for `held_s` after the question's end."""
        caller, state, turns = self._caller(), State(), [OPENING]
        for _ in range(count):
            asked, state = self._asked(caller, state, self._intent())
            turns.append(_with(asked, hold=Hold(-0.3, held_s)))
        return Fixed(turns)

    def silence(self, seconds: float) -> Fixed:
        """A question and its answer, then nothing for long."""
        asked, _ = self._asked(self._caller(), State(), self._intent())
        return Fixed([OPENING, asked, Turn(listen_s=seconds, stays=True, pause_s=1.0)])

    def _caller(self) -> Caller:
        return Caller(self.domain, Random(self.random.getrandbits(64)), held_out=self.held_out, evenly=self.evenly)

    def _asked(self, caller: Caller, state: State, intent: str) -> tuple[Turn, State]:
        saying = caller.ask(intent)
        text, after = answer(state, saying.heard, self.domain.intents)
        return Turn(saying.text, text, intent, pause_s=_pause_s(self.random)), after

    def _intent(self, but: str | None = None) -> str:
        if not self._intents:
            self._intents = [name for name in self.domain.intents if name not in NOT_A_QUESTION]
            self.random.shuffle(self._intents)
        if self._intents[-1] == but and len(self._intents) > 1:
            self._intents.insert(0, self._intents.pop())
        return self._intents.pop()

    def _long_intent(self, shortest_s: float) -> str:
        """One whose answer can be spoken into."""
        while True:
            intent = self._intent()
            if speech_seconds(self.domain.intents[intent].answer or "") >= shortest_s:
                return intent


def _with(turn: Turn, *, into_s: float | None = None, hold: Hold | None = None) -> Turn:
    return Turn(turn.text, turn.expected, turn.intent, turn.pause_s, into_s, hold=hold)


def _pause_s(random: Random) -> float:
    return round(random.uniform(0.1, 1.0), 2)


def answers_of(domain: Domain) -> tuple[str, ...]:
    """Every whole answer that says no value back."""
    found: Mapping[str, None] = dict.fromkeys(
        intent.answer for intent in domain.intents.values() if intent.answer is not None)
    return tuple(found)
