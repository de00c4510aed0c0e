"""What a caller wants and in which words they say it: turns, drawn by seed, that react to the receptionist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from agent.train.domain.reader import Domain
from agent.train.domain.reception import CHANGES, Heard, State
from agent.train.domain.slots import (
    BOOKING_SLOTS,
    CLOSED_DAY,
    VALUES,
    WEEKDAYS,
    SlotName,
    Slots,
    draw_booking,
    fill,
    fits,
    is_held_out,
    redraw,
    slots_in,
)

# How common phrasings are, by their place n in the file: (n + COMMON) ** -STEEP. The first ten of 260 are 58 % of what
# is said, the first thirty 78 %.
COMMON, STEEP = 3, 1.5

# Only said in their place, never as a question of their own.
IN_A_BOOKING = frozenset({"details", "people", "day", "time", "name", "yes", "no", "correct"})
NOT_A_QUESTION = IN_A_BOOKING | CHANGES | {"book", "change", "cancel", "goodbye", "repeat", "last_question"}
# Said bare: an opener or a closer would make another sentence of them.
BARE = IN_A_BOOKING | {"hello", "thanks", "goodbye", "repeat", "wait", "louder", "slower", "can_you_hear_me"}

# A sentence that begins so may end with "please" or "thanks".
REQUESTS = frozenset({
    "can", "could", "may", "would", "what", "where", "when", "which", "how", "do", "does", "is", "are", "tell",
    "give", "make", "I'd", "a",
})  # fmt: skip


@dataclass(frozen=True)
class Habits:
    """Shares of what callers do in their turns; each is a probability where it can happen."""

    hello: float = 0.15  # the first turn is a greeting
    thanks: float = 0.10  # after an answer
    repeat: float = 0.06  # asks to hear the answer again
    last_question: float = 0.12  # asks what they have just asked
    out_of_domain: float = 0.06  # of the questions
    opener: float = 0.25  # "excuse me, …"
    closer: float = 0.06  # "…, please"
    side_question: float = 0.12  # while booking
    several_slots: float = 0.25  # says more than was asked for
    first_wrong: float = 0.20  # of the bookings: one value is corrected after the read-back
    closed_day: float = 0.10  # of the bookings: asks for the day off first
    goodbye: float = 0.6  # of the calls end with one


@dataclass(frozen=True)
class Turn:
    heard: Heard
    text: str


@dataclass
class Caller:
    """One caller. `held_out`: speaks only held-out phrasings and books only held-out combinations. `evenly`: doesn't
    prefer what most people say."""

    domain: Domain
    random: Random
    held_out: bool
    habits: Habits = field(default_factory=Habits)
    evenly: bool = False

    def say(self, intent: str, slots: Slots | None = None) -> Turn:
        """One of the intent's phrasings that says just these slots."""
        slots = slots or {}
        phrasings = self.domain.phrasings(intent, held_out=self.held_out)
        fitting = [phrasing for phrasing in phrasings if fits(phrasing, slots)]
        assert fitting, f"no phrasing of {intent} says {sorted(slots)}"
        text = fill(self._choice(fitting), slots, self.random)
        return Turn(Heard(intent, slots), text if intent in BARE else self._wrapped(text))

    def _choice(self, phrasings: list[str]) -> str:
        """One of them. Training's stand in their files as commonly as they are said: a few sentences make most of what
        is asked on a phone, and hundreds the rest."""
        if self.held_out or self.evenly:
            return self.random.choice(phrasings)
        weights = [(place + COMMON) ** -STEEP for place in range(len(phrasings))]
        return self.random.choices(phrasings, weights)[0]

    def _wrapped(self, text: str) -> str:
        manners, random = self.domain.manners(held_out=self.held_out), self.random
        opener, closer = random.random() < self.habits.opener, random.random() < self.habits.closer
        first, last = text.split()[0].rstrip(","), text.split()[-1]
        if opener and first not in ("hello", "hi", "sorry", "so", "hey", "please", "oh"):
            text = f"{random.choice(manners.openers)} {text}"
        if closer and first in REQUESTS and last not in ("please", "thanks", "you"):
            text = f"{text} {random.choice(manners.closers)}"
        return text

    def say_some(self, intent: str, slots: Slots, must: SlotName | None = None) -> Turn | None:
        """A phrasing that says some of these slots (with `must`, that one among them); None where there is none."""
        phrasings = self.domain.phrasings(intent, held_out=self.held_out)
        subsets = sorted({tuple(sorted(slots_in(phrasing))) for phrasing in phrasings})
        usable = []
        for subset in subsets:
            said: Slots = {slot: slots[slot] for slot in subset if slot in slots}
            if len(said) == len(subset) and (must is None or must in said) and any(fits(p, said) for p in phrasings):
                usable.append(said)
        return self.say(intent, self.random.choice(usable)) if usable else None

    def question(self) -> Turn:
        """A question of its own; each intent as often as the others, but for what the restaurant can't answer."""
        if self.random.random() < self.habits.out_of_domain:
            return self.say("out_of_domain")
        return self.ask(self.random.choice([name for name in self.domain.intents if name not in NOT_A_QUESTION]))

    def ask(self, intent: str) -> Turn:
        """That question, with values of its own."""
        phrasings = self.domain.phrasings(intent, held_out=self.held_out)
        slots: Slots = {}
        for slot in sorted(slots_in(self.random.choice(phrasings))):
            slots[slot] = self.random.choice(WEEKDAYS if slot == "day" else VALUES[slot])
        return self.say(intent, slots)

    def again(self, turn: Turn) -> Turn:
        """The same wish in other words."""
        return self.say(turn.heard.intent, turn.heard.slots)


@dataclass
class Knowledge:
    """What the receptionist knows by now; whoever writes the call keeps it."""

    state: State = field(default_factory=State)


# A caller's turns towards one end. The next is drawn when the receptionist has answered the one before.
Episode = Iterator[Turn]


def asking(caller: Caller) -> Episode:
    """One question, and what comes after its answer."""
    random, habits = caller.random, caller.habits
    turn = caller.question()
    yield turn
    if random.random() < habits.repeat:
        yield caller.say("repeat")
    if caller.domain.intents[turn.heard.intent].topic and random.random() < habits.last_question:
        yield caller.say("last_question")
    if turn.heard.intent != "thanks" and random.random() < habits.thanks:
        yield caller.say("thanks")


def booking(caller: Caller, known: Knowledge) -> Episode:
    """A table, from the first word to the last."""
    random, habits = caller.random, caller.habits
    right = draw_booking(random, held_out=caller.held_out)
    now: Slots = dict(right)
    if random.random() < habits.first_wrong:
        wrong = random.choice(BOOKING_SLOTS)
        now[wrong] = redraw(right, wrong, random, held_out=caller.held_out)
    open_day, on_closed_day = now["day"], {**now, "day": CLOSED_DAY}
    if random.random() < habits.closed_day and (caller.held_out or not is_held_out(on_closed_day)):
        now = on_closed_day
    turn = caller.say("book") if random.random() < 0.3 else caller.say_some("book", now)
    while True:
        assert turn is not None
        yield turn
        if known.state.stage != "booking":
            break
        asked = known.state.next_slot()
        if turn.heard.slots.get("day") == CLOSED_DAY:  # and was told to choose another
            now["day"], asked = open_day, "day"
        elif random.random() < habits.side_question:
            yield caller.question()
        elif random.random() < habits.repeat:
            yield caller.say("repeat")
        assert asked is not None
        missing: Slots = {slot: now[slot] for slot in BOOKING_SLOTS if slot not in known.state.booking}
        several = caller.say_some("details", missing, asked) if random.random() < habits.several_slots else None
        turn = several or caller.say(asked, {asked: now[asked]})
    while known.state.stage == "confirming":
        slot = next((slot for slot in BOOKING_SLOTS if known.state.booking[slot] != right[slot]), None)
        if slot is None:
            yield caller.say("yes")
        elif random.random() < 0.5:
            yield caller.say("correct", {slot: right[slot]})
        else:
            yield caller.say("no")
            yield caller.say(slot, {slot: right[slot]})
    if random.random() < habits.thanks:
        yield caller.say("thanks")


def changing(caller: Caller, known: Knowledge) -> Episode:
    """Another day, time or number of people: of the booking made in this call, or of one made before it."""
    random = caller.random
    booked: Slots = dict(known.state.booking) if known.state.booked else {"name": random.choice(VALUES["name"])}
    slot: SlotName = random.choice(("people", "day", "time"))
    value = redraw(booked, slot, random, held_out=caller.held_out)
    if random.random() < 0.4:
        yield caller.say("change")
    else:
        yield caller.say(f"change_{slot}", {slot: value})
    while known.state.stage == "changing":
        if "name" not in known.state.booking:
            yield caller.say("name", {"name": booked["name"]})
        else:
            yield caller.say(random.choice((f"change_{slot}", slot)), {slot: value})


def cancelling(caller: Caller, known: Knowledge) -> Episode:
    """Takes a booking back: the one made in this call, or one made before it."""
    yield caller.say("cancel")
    if known.state.stage == "cancelling":
        yield caller.say("name", {"name": caller.random.choice(VALUES["name"])})
