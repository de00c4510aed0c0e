from __future__ import annotations

import re
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.train import domain as package
from agent.train.domain.distance import distances, edit_distance, nearest, normalised_distance
from agent.train.domain.reader import load

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("is there parking", "is there parking", 0),
        ("is there parking", "is there any parking", 1 / 4),
        ("at {time} please", "At {time}, please", 0),
        ("where do I park", "what about the car", 1),
    ],
)
def test_distance_counts_words_over_the_longer(one: str, other: str, expected: float) -> None:
    assert normalised_distance(one, other) == expected


@given(WORDS, WORDS)
def test_edit_distance_is_a_distance(one: list[str], other: list[str]) -> None:
    distance = edit_distance(one, other)
    assert distance == edit_distance(other, one)
    assert (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))


def test_the_nearest_is_found() -> None:
    assert nearest("any parking there", ["is there a lift", "any parking", "parking"]) == ("any parking", 1 / 3)


def test_held_out_phrasings_are_far_from_training_as_the_package_says() -> None:
    found = distances(load().intents.values())
    average, smallest = mean(each.distance for each in found), min(found, key=lambda each: each.distance)
    assert average >= 0.55
    assert smallest.distance >= 0.4, smallest
    told = re.search(r"mean (\d\.\d+), smallest (\d\.\d+)", package.__doc__ or "")
    assert told
    assert told.groups() == (f"{average:.2f}", f"{smallest.distance:.2f}")
