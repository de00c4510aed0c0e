"""Calls written by seed: who says what, and when, with all that happens when two people talk at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import combinations
from random import Random
from typing import Literal

from agent.train.callers import Caller, Episode, Habits, Knowledge, Turn, asking, booking, cancelling, changing
from agent.train.domain.reader import Domain, Manners, load, operators_sentences
from agent.train.domain.reception import GO_ON, GREETING, STILL_THERE, answer, booking_in, pending_question
from agent.train.domain.slots import SlotName, is_held_out_pair
from agent.train.script import Held, Line, Script
from agent.train.timing import lines_seconds, speech_seconds

SHORTEST_S = 20.0
LONGEST_S = 120.0
LONGEST_EXCHANGE_S = 26.0  # without a hold or a silence; a call that is nearer than this to its end begins no other

GREETING_S = (0.2, 0.6)
REPLY_S = (0.45, 0.7)  # the receptionist's usual pause before an answer: time for the last word to be understood
EARLY_S = (0.0, 0.12)
LATE_S = (0.9, 2.5)
HELD_S = (2.0, 12.0)
SILENCE_S = (8.0, 60.0)
LONGEST_SAYING_S = 50.0
SENTENCES_APART_S = (0.4, 1.6)  # where nobody answers
STRETCHES, WORDS = (2, 4), (1, 4)  # of a jumbled sentence, of a stretch
JUMBLED_SHARE = 0.5  # of what operators have the agent say
REACTION_S = (0.2, 0.45)  # an interrupted receptionist goes on for so long
SHORTEST_CUT_S = 0.8  # the receptionist is let say this much before somebody interrupts

# After these words a sentence is plainly unfinished: nobody answers into a pause there.
UNFINISHED = frozenset({
    "a", "an", "the", "my", "your", "our", "his", "her", "for", "at", "on", "in", "to", "of", "with", "and", "or",
    "is", "are", "do", "does", "can", "could", "we'd", "I'd", "I'm", "it's", "about", "from", "under", "by", "some",
    "any",
})  # fmt: skip


@dataclass(frozen=True)
class Shares:
    """What happens in a call, all in one place. Each is a probability where it can happen."""

    # how a call begins, and what it is about
    greeting: float = 0.75  # the receptionist speaks first; otherwise they are held until the caller has spoken
    booking: float = 0.30  # of the things that callers want, where there is time for it
    change: float = 0.08
    cancel: float = 0.05  # the rest are questions
    # how the receptionist answers
    early: float = 0.04  # at once (arbitrary)
    late: float = 0.05  # after LATE_S (arbitrary)
    held: float = 0.10  # forced silent for HELD_S, then answers
    held_caller_speaks: float = 0.35  # of those: the caller says "hello?" or asks again meanwhile
    # what becomes of an answer
    interruption: float = 0.14  # cut by the caller's next sentence
    held_mid_answer: float = 0.03  # cut by a hold
    backchannel: float = 0.16  # the caller says "uh huh" into it
    acknowledgement: float = 0.06  # the caller says "okay" after it
    overlap: float = 0.06  # the caller begins in its last syllables
    # what comes before the caller speaks
    silence: float = 0.06  # SILENCE_S
    held_in_silence: float = 0.25  # of those: the receptionist is forced silent in it, with nothing to say
    forced_start: float = 0.06  # the receptionist is made to speak in a pause
    # how the caller speaks
    hesitation: float = 0.18  # stops in the middle of a sentence, or thinks aloud before it
    forced_over_caller: float = 0.02  # the receptionist is made to speak while the caller does


NOTHING_HAPPENS = Shares(
    greeting=1.0, booking=0, change=0, cancel=0, early=0, late=0, held=0, interruption=0, held_mid_answer=0,
    backchannel=0, acknowledgement=0, overlap=0, silence=0, forced_start=0, hesitation=0, forced_over_caller=0,
)  # fmt: skip

EvaluationKind = Literal[
    "questions", "booking", "changes", "interruption", "backchannel", "hold", "hesitation", "silence"
]
EVALUATION_SHARES: dict[EvaluationKind, Shares] = {
    "questions": NOTHING_HAPPENS,
    "booking": replace(NOTHING_HAPPENS, booking=1.0),
    "changes": replace(NOTHING_HAPPENS, change=0.6, cancel=0.4),
    "interruption": replace(NOTHING_HAPPENS, interruption=0.5),
    "backchannel": replace(NOTHING_HAPPENS, backchannel=0.6),
    "hold": replace(NOTHING_HAPPENS, held=0.7, held_caller_speaks=0.0),
    "hesitation": replace(NOTHING_HAPPENS, hesitation=0.7),
    "silence": replace(NOTHING_HAPPENS, silence=0.5, held_in_silence=0.0),
}
EVALUATION_HABITS = Habits(opener=0.1, closer=0.03, thanks=0.03, first_wrong=0.2, closed_day=0.05, side_question=0.0)


def training_script(seed: int, *, shares: Shares | None = None, domain: Domain | None = None, evenly: bool = False
                    ) -> Script:
    """The call of this seed: training's phrasings and combinations only, 20 to 120 s by our estimate. `evenly`: rare
    phrasings as often as common ones."""
    random = Random(f"training {seed}")
    length_s = random.uniform(SHORTEST_S, LONGEST_S)
    caller = Caller(domain or load(), random, held_out=False, evenly=evenly)
    return _Writer(caller, shares or Shares(), length_s).write(f"training-{seed:06d}")


def callers_script(seed: int, *, domain: Domain | None = None) -> Script:
    """What the caller says in a call like training's, one sentence soon after the other and nobody answers: more
    than twice as much to hear in a minute, for what shall only hear. All phrasings are as common: it is for the rare
    ones' sake that there are such calls."""
    script, random = training_script(seed, domain=domain, evenly=True), Random(f"callers {seed}")
    lines = [replace(line, after_s=round(random.uniform(*SENTENCES_APART_S), 2))
             for line in script.lines if line.speaker == "caller"]
    return Script(f"callers-{seed:06d}", tuple(lines))


def jumbled_script(seed: int, *, domain: Domain | None = None) -> Script:
    """Callers whose sentences are stretches of all kinds of sentences, one behind the other: what is said there can be
    told by nothing but its sound, and every word comes after many others. They mean nothing."""
    domain, random = domain or load(), Random(f"jumbled {seed}")
    caller, length_s = Caller(domain, random, held_out=False, evenly=True), random.uniform(SHORTEST_S, LONGEST_SAYING_S)
    lines: list[Line] = []
    while lines_seconds(lines) < length_s:
        lines.append(Line("caller", _jumbled(caller), round(random.uniform(*SENTENCES_APART_S), 2)))
    return Script(f"jumbled-{seed:06d}", tuple(lines))


def _jumbled(caller: Caller) -> str:
    """Without what nobody books in training, even by chance."""
    random, intents = caller.random, sorted(caller.domain.intents)
    while True:
        said, values = list[str](), list[tuple[SlotName, str]]()
        for _ in range(random.randint(*STRETCHES)):
            turn = caller.ask(random.choice(intents))
            words = turn.text.split()
            count = min(len(words), random.randint(*WORDS))
            first = random.randint(0, len(words) - count)
            said += words[first:first + count]
            values += turn.heard.slots.items()
        if not _held_out_together(values):
            return " ".join(said).rstrip(",")


def _held_out_together(values: list[tuple[SlotName, str]]) -> bool:
    """Whether any two of them are a combination that no booking of training's holds."""
    return any(one[0] != other[0] and is_held_out_pair(one, other) for one, other in combinations(values, 2))


def saying_script(seed: int, *, domain: Domain | None = None) -> Script:
    """A call in which an operator has the agent say one sentence after the other, and the caller listens. What it is
    made to say shall be understood as well as what it says by itself."""
    domain, random = domain or load(), Random(f"saying {seed}")
    caller, length_s = Caller(domain, random, held_out=False, evenly=True), random.uniform(SHORTEST_S, LONGEST_SAYING_S)
    lines = [Line("agent", GREETING, round(random.uniform(*GREETING_S), 2))] if random.random() < 0.5 else []
    while lines_seconds(lines) < length_s:
        lines.append(Line("agent", _told(caller), round(random.uniform(0.4, 2.0), 2), kind="said", decided=False))
    return Script(f"saying-{seed:06d}", tuple(lines))


def _told(caller: Caller) -> str:
    """A sentence of an operator, of a caller or of the agent's own, or, as often as not, words of all three in any
    order: there a word's sound can be told by nothing but the word."""
    random = caller.random
    if random.random() >= JUMBLED_SHARE:
        return _sentence(caller)[0]
    while True:
        sentences = [_sentence(caller) for _ in range(3)]
        if not _held_out_together([value for _, values in sentences for value in values]):
            words = re.sub("[.,?]", "", " ".join(text for text, _ in sentences)).split()
            return " ".join(random.sample(words, min(len(words), random.randint(3, 9))))


def _sentence(caller: Caller) -> tuple[str, list[tuple[SlotName, str]]]:
    """An operator's, a caller's or the agent's own, and the values that a caller's has."""
    random = caller.random
    match random.choice(("operator", "caller", "agent")):
        case "operator":
            return random.choice(operators_sentences()), []
        case "caller":
            turn = caller.question()
            return turn.text, list(turn.heard.slots.items())
        case _:
            answers = sorted({intent.answer for intent in caller.domain.intents.values() if intent.answer})
            return random.choice(answers), []


def evaluation_script(seed: int, kind: EvaluationKind = "questions", *, domain: Domain | None = None) -> Script:
    """A call of held-out phrasings and held-out combinations in which, but for `kind`, nothing unusual happens."""
    random = Random(f"evaluation {kind} {seed}")
    caller = Caller(domain or load(), random, held_out=True, habits=EVALUATION_HABITS)
    length_s = random.uniform(60, LONGEST_S) if kind == "silence" else random.uniform(45, 90)
    return _Writer(caller, EVALUATION_SHARES[kind], length_s).write(f"{kind}-{seed:04d}")


@dataclass
class _Writer:
    """Writes one call, line by line: `lines` and `held` grow, `known` is what the receptionist knows."""

    caller: Caller
    shares: Shares
    length_s: float  # about how long the call shall be
    lines: list[Line] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    known: Knowledge = field(default_factory=Knowledge)

    def write(self, name: str) -> Script:
        habits = self.caller.habits
        if self._happens(self.shares.greeting):
            self._add(Line("agent", GREETING, self._draw(*GREETING_S)))
        if self._happens(habits.hello):
            self._exchange(self.caller.say("hello"))
        while self._seconds() < self.length_s - 5 and self._left_s() > 0:
            for turn in self._episode():
                self._exchange(turn)
                if self._left_s() <= 0:
                    break
        if self._happens(habits.goodbye) and self._left_s() > 0:
            self._exchange(self.caller.say("goodbye"))
        if self.lines[0].speaker == "caller":
            self._hold_the_greeting()
        tail_s = max(self._draw(0.5, 2.0), SHORTEST_S - self._seconds())
        return Script(name, tuple(self.lines), tuple(self.held), round(tail_s, 2))

    def _hold_the_greeting(self) -> None:
        """Whoever doesn't greet is forced not to, until the caller's first sentence ends or is spoken into."""
        first = next(i for i, line in enumerate(self.lines) if line.kind != "hesitation")
        answer_s = self.lines[first + 1].after_s
        self.held.insert(0, Held(first, -LONGEST_S, first, min(0.0, answer_s - 0.1)))

    def _episode(self) -> Episode:
        """What the caller wants next; long matters only while there is time for them."""
        shares, left_s, draw = self.shares, self.length_s - self._seconds(), self.caller.random.random()
        if draw < shares.booking:
            return booking(self.caller, self.known) if left_s > 35 else asking(self.caller)
        if draw < shares.booking + shares.change:
            return changing(self.caller, self.known) if left_s > 15 else asking(self.caller)
        if draw < shares.booking + shares.change + shares.cancel:
            return cancelling(self.caller, self.known) if left_s > 12 else asking(self.caller)
        return asking(self.caller)

    def _exchange(self, turn: Turn) -> None:
        """The caller says something and is answered."""
        self._caller(turn, self._before(turn))
        asked = len(self.lines) - 1
        text, self.known.state = answer(self.known.state, turn.heard, self.caller.domain.intents)
        after_s, decided = self._pause_before_answer(turn, asked)
        self._add(Line("agent", text, after_s, intent=turn.heard.intent, decided=decided))

    # What comes between the last line and the caller's next: each returns the caller's `after_s`.

    def _before(self, turn: Turn) -> float:
        shares = self.shares
        if not self.lines:
            return self._draw(0.5, 6.0)
        last = self.lines[-1]
        whole_s = speech_seconds(last.text)
        if whole_s > SHORTEST_CUT_S + 1 and _may_be_cut(last.text, turn):
            if self._happens(shares.interruption):
                self._cut(whole_s)
                return -self._draw(*REACTION_S)
            if self._happens(shares.held_mid_answer):
                return self._cut_by_hold(whole_s)
        if not last.text.endswith("?"):
            if whole_s > 2 and self._happens(shares.backchannel):
                return self._backchannel(whole_s)
            if self._happens(shares.acknowledgement):
                self._add(self._aside(self._manners.backchannels, self._draw(0.15, 0.6)))
                return self._draw(0.8, 2.5)
        if whole_s > 1 and self._happens(shares.overlap):
            return -self._draw(0.1, 0.4)
        if self._happens(shares.silence) and self._silence_room_s() > SILENCE_S[0]:
            return self._silence()
        if turn.heard.intent != "repeat" and self._happens(shares.forced_start):
            text = pending_question(self.known.state) or STILL_THERE
            self._add(Line("agent", text, self._draw(0.8, 6.0), decided=False))
        return self._draw(0.4, 2.0) if self._happens(0.85) else self._draw(2.0, 6.0)

    def _cut(self, whole_s: float) -> None:
        self.lines[-1] = replace(self.lines[-1], cut_s=self._draw(SHORTEST_CUT_S, whole_s - 0.6))

    def _cut_by_hold(self, whole_s: float) -> float:
        """The answer is not taken up again after the hold: what was said is said."""
        self._cut(whole_s)
        cut, end_s = len(self.lines) - 1, self._draw(2.0, 6.0)
        self.held.append(Held(cut, -0.1, cut, end_s))
        return round(end_s + self._draw(0.5, 2.0), 2)

    def _backchannel(self, whole_s: float) -> float:
        """Into the last line; the caller goes on after that line's end."""
        begin_s = self._draw(0.6, whole_s - 0.8)
        line = self._aside(self._manners.backchannels, round(begin_s - whole_s, 2))
        self._add(line)
        rest_s = max(0.0, whole_s - begin_s - speech_seconds(line.text))
        return round(rest_s + self._draw(0.5, 2.0), 2)

    def _silence(self) -> float:
        shortest_s, longest_s = SILENCE_S
        silence_s = self._draw(shortest_s, min(longest_s, self._silence_room_s()))
        if self._happens(self.shares.held_in_silence):
            last, begin_s = len(self.lines) - 1, self._draw(0.5, 2.0)
            self.held.append(Held(last, begin_s, last, self._draw(begin_s + 2, silence_s - 1)))
        return silence_s

    def _silence_room_s(self) -> float:
        return min(self.length_s - self._seconds(), self._left_s())

    # How the caller says it.

    def _caller(self, turn: Turn, after_s: float) -> None:
        text, intent = turn.text, turn.heard.intent
        if self._happens(self.shares.hesitation):
            first, text = self._unfinished(text)
            self._add(Line("caller", first, after_s, kind="hesitation"))
            after_s = self._draw(0.5, 1.5)
        self._add(Line("caller", text, after_s, intent=intent))

    def _unfinished(self, text: str) -> tuple[str, str]:
        """The part before the caller's pause, and the rest. Nobody could take the first part for the whole."""
        words, filler = text.split(), self.caller.random.choice(self._manners.fillers)
        stops = [i for i in range(1, len(words)) if words[i - 1] in UNFINISHED]
        if not stops:
            return filler, text
        stop = self.caller.random.choice(stops)
        first = " ".join(words[:stop])
        return (f"{first} {filler}" if self._happens(0.5) else first), " ".join(words[stop:])

    # How long the receptionist takes to answer.

    def _pause_before_answer(self, turn: Turn, asked: int) -> tuple[float, bool]:
        """`after_s` and `decided` of the answer to `lines[asked]`, the last line."""
        shares = self.shares
        if self._happens(shares.forced_over_caller):
            return self._speak_over_caller(asked), True
        if self._happens(shares.early):
            return self._draw(*EARLY_S), False
        if self._happens(shares.late):
            return self._draw(*LATE_S), False
        if self._happens(shares.held) and self._left_s() > HELD_S[1] - 10:
            return self._hold(turn, asked), True
        return self._draw(*REPLY_S), True

    def _speak_over_caller(self, asked: int) -> float:
        """Forced to speak, the receptionist lets the caller finish; the answer comes when both are done."""
        over_s = self._draw(0.2, max(0.3, speech_seconds(self.lines[asked].text) - 0.4))
        self._add(Line("agent", GO_ON, -over_s, decided=False))
        return round(max(0.0, over_s - speech_seconds(GO_ON)) + self._draw(*REPLY_S), 2)

    def _hold(self, turn: Turn, asked: int) -> float:
        begin_s, end_s, until = self._draw(-0.4, 0.1), self._draw(*HELD_S), asked
        if end_s > 5 and self._happens(self.shares.held_caller_speaks):
            again_s = self._draw(2.0, end_s - 2.0)
            if self.caller.domain.intents[turn.heard.intent].topic and self._happens(0.5):
                again = self.caller.again(turn)
                self._add(Line("caller", again.text, again_s, intent=again.heard.intent))
            else:
                self._add(self._aside(self._manners.impatient, again_s))
            until, end_s = len(self.lines) - 1, self._draw(0.6, 3.0)
        self.held.append(Held(asked, begin_s, until, end_s))
        return round(end_s + self._draw(*REPLY_S), 2)

    @property
    def _manners(self) -> Manners:
        return self.caller.domain.manners(held_out=self.caller.held_out)

    def _aside(self, said: tuple[str, ...], after_s: float) -> Line:
        return Line("caller", self.caller.random.choice(said), after_s, kind="backchannel")

    def _add(self, line: Line) -> None:
        self.lines.append(line)

    def _seconds(self) -> float:
        return lines_seconds(self.lines)

    def _left_s(self) -> float:
        """How long it is until nothing new may begin."""
        return LONGEST_S - LONGEST_EXCHANGE_S - self._seconds()

    def _happens(self, share: float) -> bool:
        return self.caller.random.random() < share

    def _draw(self, low: float, high: float) -> float:
        return round(self.caller.random.uniform(low, high), 2)


def _may_be_cut(answer_text: str, next_turn: Turn) -> bool:
    """Whether the caller may speak into this answer: not where they have to hear the whole of it."""
    return booking_in(answer_text) is None and next_turn.heard.intent not in ("repeat", "last_question", "yes", "no")
