"""What the receptionist answers: a pure function of what was said so far in the call.

Answers are short and nearly always the same words for the same meaning, so that a small model can learn them exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.train.domain.reader import Intent
from agent.train.domain.slots import (
    BOOKING_SLOTS,
    CLOSED_DAY,
    DAYS,
    DISH_PRICES,
    DISHES,
    NAMES,
    NUMBERS,
    TIMES,
    WEEKDAYS,
    SlotName,
    Slots,
    on_day,
)

GREETING = "Casa Tandem, hello. How can I help you?"
HELP = "How can I help you?"
STILL_THERE = "Are you still there?"
GO_ON = "Sorry, please go on."
ASK_NAME = "Of course. What is your name?"
ASK_CHANGE = "What should I change?"
CLOSED = f"Sorry, we are closed on {CLOSED_DAY}. Please choose another day."
NOTHING_ASKED = "You have not asked me anything yet."
CANCELLED = "Your booking is cancelled."
QUESTIONS: Mapping[SlotName, str] = {
    "people": "For how many people?", "day": "On what day?", "time": "At what time?", "name": "What is your name?",
}  # fmt: skip

CLOSING_HOURS = {"Friday": "midnight", "Saturday": "midnight", "Sunday": "ten"}
USUAL_CLOSING_HOUR = "eleven"

Stage = Literal["open", "booking", "confirming", "changing", "cancelling"]

# Intents that bring values for a booking, or change them.
BOOKING_INTENTS = frozenset({
    "book", "details", "people", "day", "time", "name", "correct", "change_day", "change_time", "change_people",
})  # fmt: skip
CHANGES = frozenset({"change_day", "change_time", "change_people"})
# Talk about the talk: a caller who asks for a repetition does not mean the answers to these.
ASIDES = frozenset({"repeat", "louder", "slower", "wait"})


@dataclass(frozen=True)
class Heard:
    """What a caller meant."""

    intent: str
    slots: Slots = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What the receptionist knows of the call."""

    stage: Stage = "open"
    booking: Slots = field(default_factory=dict)  # the one being made, or the one made or named in this call
    wanted: Slots = field(default_factory=dict)  # changes that wait for a name
    booked: bool = False
    topic: str | None = None  # of the caller's last question
    answer: str = HELP  # what a caller who asks for it hears again

    def next_slot(self) -> SlotName | None:
        """What the receptionist has to ask for next, in a booking."""
        return next((slot for slot in BOOKING_SLOTS if slot not in self.booking), None)


def answer(state: State, heard: Heard, intents: Mapping[str, Intent]) -> tuple[str, State]:
    """What the receptionist says to this, and what they know then."""
    text, after = _answer(state, heard, intents)
    topic = intents[heard.intent].topic or state.topic
    return text, replace(after, topic=topic, answer=state.answer if heard.intent in ASIDES else text)


def pending_question(state: State) -> str | None:
    """What the receptionist is waiting to hear, as they would ask it again."""
    if state.stage == "booking":
        slot = state.next_slot()
        return QUESTIONS[slot] if slot else None
    if state.stage == "confirming":
        return "Is that right?"
    if state.stage == "changing":
        return ASK_CHANGE if "name" in state.booking else QUESTIONS["name"]
    return QUESTIONS["name"] if state.stage == "cancelling" else None


def _answer(state: State, heard: Heard, intents: Mapping[str, Intent]) -> tuple[str, State]:
    if heard.intent in BOOKING_INTENTS:
        return _take(state, heard)
    if heard.intent == "yes":
        if state.stage != "confirming":
            return pending_question(state) or HELP, state
        booked = f"Your table is booked. See you {on_day(state.booking['day'])}."
        return booked, replace(state, stage="open", booked=True)
    if heard.intent == "no":
        if state.stage != "confirming":
            return pending_question(state) or HELP, state
        return f"I am sorry. {ASK_CHANGE}", state
    if heard.intent == "change":
        if state.booked and "name" in state.booking:
            return f"Of course. {ASK_CHANGE}", replace(state, stage="changing", wanted={})
        return ASK_NAME, replace(state, stage="changing", booking={}, wanted={})
    if heard.intent == "cancel":
        if state.booked and "name" in state.booking:
            return _cancelled(state, state.booking["name"])
        return ASK_NAME, replace(state, stage="cancelling", booking={})
    if heard.intent == "repeat":
        return state.answer, state
    if heard.intent == "last_question":
        return (f"You asked about {state.topic}." if state.topic else NOTHING_ASKED), state
    if heard.intent == "goodbye":
        state = replace(state, stage="open")
    return intents[heard.intent].answer or _fact(heard), state


def _fact(heard: Heard) -> str:
    """The answers that say a value back."""
    if heard.intent == "hours_day":
        return hours_of(heard.slots["day"])
    if heard.intent == "dish":
        dish = heard.slots["dish"]
        return f"Yes, we have {dish} on the menu." if dish in DISH_PRICES else _no_dish(dish)
    if heard.intent == "dish_price":
        dish = heard.slots["dish"]
        return f"The {dish} costs {DISH_PRICES[dish]} dollars." if dish in DISH_PRICES else _no_dish(dish)
    assert heard.intent == "late", f"nothing is written as an answer to {heard.intent}"
    return f"{_capital(heard.slots['number'])} minutes is no problem. We will keep your table."


def hours_of(day: str) -> str:
    if day == CLOSED_DAY:
        return f"We are closed on {day}."
    return f"On {day} we are open from noon to {CLOSING_HOURS.get(day, USUAL_CLOSING_HOUR)}."


def _no_dish(dish: str) -> str:
    return f"Sorry, we do not have {dish}."


def _take(state: State, heard: Heard) -> tuple[str, State]:
    """Values for a booking, wherever the talk is."""
    if state.stage == "cancelling" and "name" in heard.slots:
        return _cancelled(state, heard.slots["name"])
    if state.stage == "changing":
        return _change(state, heard.slots, asked=True)
    if state.stage == "open" and heard.intent != "book" and (state.booked or heard.intent in CHANGES):
        known = state.booking if state.booked else {}
        return _change(replace(state, stage="changing", booking=known, wanted={}), heard.slots, asked=False)
    if state.stage not in ("booking", "confirming"):
        state = replace(state, booking={}, booked=False)
    return _book(replace(state, stage="booking"), heard.slots)


def _book(state: State, slots: Slots) -> tuple[str, State]:
    if slots.get("day") == CLOSED_DAY:
        known: Slots = {**state.booking, **slots}
        known.pop("day")
        return CLOSED, replace(state, booking=known)
    state = replace(state, booking={**state.booking, **slots})
    asked_next = state.next_slot()
    if asked_next is None:
        return read_back(state.booking), replace(state, stage="confirming")
    echo = ", ".join(_said_back(slot, slots[slot]) for slot in BOOKING_SLOTS if slot in slots)
    return f"{_capital(echo) or 'Of course'}. {QUESTIONS[asked_next]}", state


def _change(state: State, slots: Slots, *, asked: bool) -> tuple[str, State]:
    wanted: Slots = {**state.wanted, **{slot: value for slot, value in slots.items() if slot != "name"}}
    booking: Slots = {**state.booking, **({"name": slots["name"]} if "name" in slots else {})}
    if wanted.get("day") == CLOSED_DAY:
        del wanted["day"]
        return CLOSED, replace(state, booking=booking, wanted=wanted)
    state = replace(state, booking=booking, wanted=wanted)
    if "name" not in booking:
        return QUESTIONS["name"] if asked else ASK_NAME, state
    echo = f"{slots['name']}. " if "name" in slots else ""
    if not wanted:
        return f"{echo}{ASK_CHANGE}", state
    changes = [_changed(slot, wanted[slot]) for slot in BOOKING_SLOTS if slot in wanted]
    text = f"{echo}Your table is now {' '.join(changes)}."
    return text, replace(state, stage="open", booking={**booking, **wanted}, wanted={}, booked=True)


def _cancelled(state: State, name: str) -> tuple[str, State]:
    return f"{name}. {CANCELLED}", replace(state, stage="open", booking={}, wanted={}, booked=False)


def read_back(booking: Slots) -> str:
    """The whole booking, for the caller to agree to."""
    said = " ".join(_changed(slot, booking[slot]) for slot in BOOKING_SLOTS if slot != "name")
    return f"A table {said}, under {booking['name']}. Is that right?"


_READ_BACK = re.compile(r"A table for ([\w ]+?) (?:on )?(\w+) at ([\w ]+), under (\w+)\. Is that right\?")


def booking_in(text: str) -> Slots | None:
    """The booking that a read-back says; None where the text is no read-back."""
    found = _READ_BACK.fullmatch(text)
    return dict(zip(BOOKING_SLOTS, found.groups(), strict=True)) if found else None


def _changed(slot: SlotName, value: str) -> str:
    return {"people": f"for {value}", "day": on_day(value), "time": f"at {value}"}[slot]


def _said_back(slot: SlotName, value: str) -> str:
    if slot == "people":
        return "one person" if value == "one" else f"{value} people"
    return value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def vocabulary(intents: Mapping[str, Intent]) -> tuple[frozenset[str], frozenset[str]]:
    """The words that the agent ever says, in lower case: of its sentences, and of the values that callers name."""
    sentences = {word for text in _sentences(intents) for word in _words(text)}
    values = {word for text in (*NUMBERS, *DAYS, *TIMES, *NAMES, *DISHES) for word in _words(text)}
    return frozenset(sentences - values), frozenset(values)


def _sentences(intents: Mapping[str, Intent]) -> Iterator[str]:
    yield from (GREETING, HELP, STILL_THERE, GO_ON, ASK_NAME, ASK_CHANGE, CLOSED, NOTHING_ASKED, CANCELLED)
    yield from QUESTIONS.values()
    yield from (intent.answer for intent in intents.values() if intent.answer)
    yield from (f"You asked about {intent.topic}." for intent in intents.values() if intent.topic)
    yield from (hours_of(day) for day in WEEKDAYS)
    yield from ("Yes, we have it on the menu.", _no_dish("it"), "The it costs dollars.", "One person. Two people.")
    yield "One minutes is no problem. We will keep your table."
    yield f"Of course. {ASK_CHANGE} I am sorry. Your table is booked. See you. Your table is now."
    yield read_back({"people": "two", "day": "Friday", "time": "two", "name": NAMES[0]})


def _words(text: str) -> list[str]:
    return [word.strip(".,?").lower() for word in text.split()]
