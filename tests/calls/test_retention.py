"""Card numbers as people say them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls.retention import card_numbers

UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize(("said", "left"), [
    ("it's 4111 1111 1111 1111 thanks", "it's * thanks"),
    ("4111111111111111", "*"), ("4111-1111-1111-1111.", "*"),
    ("yes four one one one um one one one one then one one one one one one one one okay", "yes * okay"),
    ("forty-two forty two 4242 double four triple two four two 42", "*"),
    ("four oh to for six six six six seven seven seven seven eight eight ate ate bye", "* bye"),
    ("for four one one one one one one one one one one one one one one one", "for *"),
    ("a table for two at seven thirty on the fifth", "a table for two at seven thirty on the fifth"),
    ("it is oh three oh one two three four five six seven", "it is oh three oh one two three four five six seven"),
    ("one two three four five six and well now seven eight nine zero one two three four",
     "one two three four five six and well now seven eight nine zero one two three four"),
    ("", ""),
])
def test_a_number_of_a_cards_length_is_found_however_it_is_said(said: str, left: str) -> None:
    words = said.split()
    for one in reversed(list(card_numbers(words))):
        words[one.first:one.last + 1] = ["*"]
    assert " ".join(words) == left


@given(st.lists(st.integers(0, 9), min_size=13, max_size=19), st.data())
def test_digits_in_any_mixture_of_words_and_figures_are_found(digits: list[int], data: st.DataObject) -> None:
    words: list[str] = []
    left = list(digits)
    while left:
        if data.draw(st.booleans()):
            words.append(UNITS[left.pop(0)])
        else:
            many = data.draw(st.integers(1, min(4, len(left))))
            words.append("".join(map(str, left[:many])))
            del left[:many]
    [one] = card_numbers(["well", *words, "right"])
    assert (one.first, one.last) == (1, len(words))


@given(st.lists(st.text(max_size=12), max_size=40))
def test_whatever_is_said_places_are_in_order_and_within(words: list[str]) -> None:
    at = -1
    for one in card_numbers(words):
        assert at < one.first <= one.last < len(words)
        at = one.last
