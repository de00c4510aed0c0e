"""What a caller fills in: how many, which day, what time, which name; and which combinations training never sees."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import combinations
from random import Random
from typing import Literal

SlotName = Literal["people", "day", "time", "name", "dish", "number"]
Slots = dict[SlotName, str]  # slot -> its value, as the agent says it

NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CLOSED_DAY = "Monday"
DAYS = (*WEEKDAYS, "today", "tomorrow")
TIMES = (
    "twelve", "twelve thirty", "one", "one thirty", "two",
    "five", "five fifteen", "five thirty", "five forty five",
    "six", "six fifteen", "six thirty", "six forty five",
    "seven", "seven fifteen", "seven thirty", "seven forty five",
    "eight", "eight fifteen", "eight thirty", "eight forty five",
    "nine", "nine fifteen", "nine thirty",
)  # fmt: skip
NAMES = (
    "Adams", "Baker", "Bennett", "Brown", "Campbell", "Carter", "Collins", "Cooper", "Dixon", "Edwards",
    "Fisher", "Foster", "Garcia", "Green", "Hill", "Hughes", "Hunter", "Jackson", "Johnson", "Kelly",
    "King", "Lopez", "Martin", "Miller", "Morris", "Murphy", "Novak", "Parker", "Patel", "Peterson",
    "Robinson", "Rossi", "Russell", "Singh", "Spencer", "Stewart", "Taylor", "Walker", "Wilson", "Young",
)  # fmt: skip
DISH_PRICES = {  # dollars
    "lasagna": "fourteen", "risotto": "sixteen", "ravioli": "fifteen", "mushroom pizza": "twelve",
    "seafood pasta": "eighteen", "grilled salmon": "nineteen", "chicken salad": "eleven", "tomato soup": "six",
    "onion soup": "eight", "garlic bread": "five", "tiramisu": "seven", "ice cream": "four",
}  # fmt: skip
MISSING_DISHES = ("sushi", "fried rice", "roast lamb", "curry", "duck", "pancakes")
DISHES = (*DISH_PRICES, *MISSING_DISHES)

VALUES: Mapping[SlotName, tuple[str, ...]] = {
    "people": NUMBERS, "day": DAYS, "time": TIMES, "name": NAMES, "dish": DISHES, "number": NUMBERS[1:],
}  # fmt: skip
BOOKING_SLOTS: tuple[SlotName, ...] = ("people", "day", "time", "name")

# What stands in braces in a phrasing -> the slot that it says. Forms differ in grammar and in the values they allow.
FORMS: Mapping[str, SlotName] = {
    "people": "people",  # "four"
    "persons": "people",  # "four people", "one person"
    "party": "people",  # "four", from two on: "{party} of us"
    "day": "day",  # "Friday", "tomorrow"
    "on_day": "day",  # "on Friday", "tomorrow"
    "weekday": "day",  # "Friday", no "today" or "tomorrow"
    "time": "time",
    "name": "name",
    "dish": "dish",
    "number": "number",  # from two on
}
_FORM = re.compile(r"\{(\w+)\}")

HELD_OUT_PAIR_SHARE = 8  # one pair of values in so many is never in a training script


def forms_in(phrasing: str) -> list[str]:
    """The names in braces, in order."""
    return _FORM.findall(phrasing)


def slots_in(phrasing: str) -> frozenset[SlotName]:
    """The slots that a phrasing says."""
    return frozenset(FORMS[form] for form in forms_in(phrasing))


def fits(phrasing: str, slots: Mapping[SlotName, str]) -> bool:
    """Whether the phrasing can say these values, and says no others."""
    forms = forms_in(phrasing)
    if slots_in(phrasing) != frozenset(slots):
        return False
    if "party" in forms and slots["people"] == "one":
        return False
    return not ("weekday" in forms and slots["day"] not in WEEKDAYS)


def fill(phrasing: str, slots: Mapping[SlotName, str], random: Random) -> str:
    """The phrasing with its slots said; where a value has several sayings ("half past six") one is drawn."""
    return _FORM.sub(lambda form: _say(form[1], slots[FORMS[form[1]]], random), phrasing)


def on_day(day: str) -> str:
    """ "on Friday", but "tomorrow"."""
    return f"on {day}" if day in WEEKDAYS else day


def sayings_of_time(time: str) -> tuple[str, ...]:
    """How callers say a time: "seven thirty", "half past seven"."""
    hour, _, minutes = time.partition(" ")
    if minutes == "thirty":
        return time, f"half past {hour}"
    if minutes == "fifteen":
        return time, f"quarter past {hour}"
    if minutes == "forty five":
        return time, f"quarter to {NUMBERS[NUMBERS.index(hour) + 1]}"
    return (time, f"{hour} o'clock", "noon") if hour == "twelve" else (time, f"{hour} o'clock")


def _say(form: str, value: str, random: Random) -> str:
    if form == "time":
        return random.choice(sayings_of_time(value))
    if form == "persons":
        return "one person" if value == "one" else f"{value} people"
    if form in ("day", "on_day") and value == "today":
        return random.choice(("today", "tonight"))
    return on_day(value) if form == "on_day" else value


def is_held_out_pair(one: tuple[SlotName, str], other: tuple[SlotName, str]) -> bool:
    """Whether training never sees these two values in one booking: one pair in eight, picked by a hash."""
    key = "|".join(["held out", *(f"{slot}={value}" for slot, value in sorted((one, other)))])
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_PAIR_SHARE == 0


def is_held_out(slots: Mapping[SlotName, str]) -> bool:
    """Whether a booking, whole or in part, holds a pair of values that training never sees."""
    said = [(slot, slots[slot]) for slot in BOOKING_SLOTS if slot in slots]
    return any(is_held_out_pair(one, other) for one, other in combinations(said, 2))


def draw_booking(random: Random, *, held_out: bool) -> Slots:
    """People, day (never the closed one), time and name; in combinations that training sees, or only in others."""
    while True:  # about half of all combinations are held out, so this ends soon
        booking: Slots = {slot: random.choice(VALUES[slot]) for slot in BOOKING_SLOTS}
        if booking["day"] != CLOSED_DAY and is_held_out(booking) == held_out:
            return booking


def redraw(booking: Mapping[SlotName, str], slot: SlotName, random: Random, *, held_out: bool) -> str:
    """Another value for a slot, or a first one, such that a training booking stays one.

    Where no other value does, the old one. A held-out booking stays held out where that is possible.
    """
    values = [value for value in VALUES[slot] if value not in (booking.get(slot), CLOSED_DAY)]
    same_side = [value for value in values if is_held_out({**booking, slot: value}) == held_out]
    if same_side:
        return random.choice(same_side)
    return random.choice(values) if held_out else booking[slot]
