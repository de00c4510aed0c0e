from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.train.domain.reader import load
from agent.train.domain.slots import (
    BOOKING_SLOTS,
    CLOSED_DAY,
    NAMES,
    VALUES,
    Slots,
    draw_booking,
    fill,
    fits,
    is_held_out,
    is_held_out_pair,
    redraw,
    sayings_of_time,
    slots_in,
)


def test_there_are_forty_names_and_numbers_to_twenty() -> None:
    assert len(set(NAMES)) == 40
    assert len(set(VALUES["people"])) == 20


@pytest.mark.parametrize(
    ("phrasing", "slots", "said"),
    [
        ("a table {on_day}", {"day": "Friday"}, {"a table on Friday"}),
        ("a table {on_day}", {"day": "tomorrow"}, {"a table tomorrow"}),
        ("for {persons}", {"people": "one"}, {"for one person"}),
        ("for {persons}", {"people": "six"}, {"for six people"}),
        ("at {time}", {"time": "six thirty"}, {"at six thirty", "at half past six"}),
        ("at {time}", {"time": "eight forty five"}, {"at eight forty five", "at quarter to nine"}),
        ("{day} please", {"day": "today"}, {"today please", "tonight please"}),
    ],
)
def test_values_are_said_as_callers_say_them(phrasing: str, slots: Slots, said: set[str]) -> None:
    assert {fill(phrasing, slots, Random(seed)) for seed in range(20)} == said


@pytest.mark.parametrize(
    ("phrasing", "slots", "fitting"),
    [
        ("{party} of us", {"people": "one"}, False),
        ("{party} of us", {"people": "two"}, True),
        ("this {weekday}", {"day": "tomorrow"}, False),
        ("this {weekday}", {"day": "Sunday"}, True),
        ("{people} {on_day}", {"people": "two"}, False),
        ("a table please", {"people": "two"}, False),
    ],
)
def test_a_phrasing_fits_only_what_it_can_say(phrasing: str, slots: Slots, fitting: bool) -> None:
    assert fits(phrasing, slots) is fitting


def test_every_time_is_said_in_words_of_its_own() -> None:
    said = [saying for time in VALUES["time"] for saying in sayings_of_time(time)]
    assert len(said) == len(set(said))


def test_every_phrasing_can_be_filled() -> None:
    for intent in load().intents.values():
        for phrasing in intent.training + intent.held_out:
            slots: Slots = {slot: VALUES[slot][1] for slot in slots_in(phrasing)}
            assert fits(phrasing, slots)
            assert "{" not in fill(phrasing, slots, Random(0))


def test_a_pair_is_held_out_whichever_comes_first() -> None:
    pairs = [(("day", day), ("time", time)) for day, time in product(VALUES["day"], VALUES["time"])]
    assert all(is_held_out_pair(one, other) == is_held_out_pair(other, one) for one, other in pairs)


def test_the_held_out_pairs_are_these_for_ever() -> None:
    """Were the rule changed, a model trained before would be tested on combinations that it has seen."""
    held_out = [day for day in VALUES["day"] if is_held_out_pair(("day", day), ("time", "eight"))]
    numbers = [people for people in VALUES["people"] if is_held_out_pair(("people", people), ("name", "Miller"))]
    assert (held_out, numbers) == (["Monday", "Wednesday"], ["six", "twenty"])


def test_about_one_pair_in_eight_is_held_out_of_every_two_slots() -> None:
    for index, one in enumerate(BOOKING_SLOTS):
        for other in BOOKING_SLOTS[index + 1:]:
            pairs = list(product(VALUES[one], VALUES[other]))
            share = sum(is_held_out_pair((one, first), (other, second)) for first, second in pairs) / len(pairs)
            assert 0.1 < share < 0.17, (one, other)


@given(st.integers(0, 10**6), st.booleans())
def test_a_drawn_booking_is_on_its_side_and_stays_there_when_a_value_changes(seed: int, held_out: bool) -> None:
    random = Random(seed)
    booking = draw_booking(random, held_out=held_out)
    assert is_held_out(booking) == held_out
    assert booking["day"] != CLOSED_DAY
    for slot in BOOKING_SLOTS:
        changed: Slots = {**booking, slot: redraw(booking, slot, random, held_out=held_out)}
        assert held_out or not is_held_out(changed)


def test_a_part_of_a_booking_is_held_out_by_the_pairs_in_it() -> None:
    booking = draw_booking(Random(1), held_out=True)
    assert not any(is_held_out({slot: booking[slot]}) for slot in BOOKING_SLOTS)
