from __future__ import annotations

from random import Random

import pytest

from agent.train.domain.reader import load
from agent.train.domain.reception import Heard, State, answer, booking_in, read_back, vocabulary
from agent.train.domain.slots import VALUES, Slots, draw_booking, slots_in

INTENTS = load().intents
BOOKED: Slots = {"people": "four", "day": "Friday", "time": "seven thirty", "name": "Miller"}


def talk(*heard: tuple[str, Slots] | str) -> list[str]:
    """What is answered to a caller who says these."""
    state, answers = State(), []
    for said in heard:
        intent, slots = (said, {}) if isinstance(said, str) else said
        text, state = answer(state, Heard(intent, slots), INTENTS)
        answers.append(text)
    return answers


def test_a_booking_asks_for_what_is_missing_reads_back_and_says_goodbye() -> None:
    assert talk("book", ("people", {"people": "four"}), ("day", {"day": "Friday"}), ("time", {"time": "seven thirty"}),
                ("name", {"name": "Miller"}), "yes", "goodbye") == [
        "Of course. For how many people?",
        "Four people. On what day?",
        "Friday. At what time?",
        "Seven thirty. What is your name?",
        "A table for four on Friday at seven thirty, under Miller. Is that right?",
        "Your table is booked. See you on Friday.",
        "Thank you for calling. Goodbye.",
    ]  # fmt: skip


def test_what_was_said_already_is_not_asked_again() -> None:
    first, rest = {"people": "one", "day": "tomorrow"}, {"time": "six", "name": "Rossi"}
    assert talk(("book", first), ("details", rest), "yes") == [
        "One person, tomorrow. At what time?",
        "A table for one tomorrow at six, under Rossi. Is that right?",
        "Your table is booked. See you tomorrow.",
    ]


def test_a_wrong_value_is_corrected_and_read_back_again() -> None:
    answers = talk(("book", BOOKED), ("correct", {"people": "five"}), "no", ("time", {"time": "eight"}), "yes")
    assert answers == [
        "A table for four on Friday at seven thirty, under Miller. Is that right?",
        "A table for five on Friday at seven thirty, under Miller. Is that right?",
        "I am sorry. What should I change?",
        "A table for five on Friday at eight, under Miller. Is that right?",
        "Your table is booked. See you on Friday.",
    ]


def test_the_closed_day_is_refused_and_the_rest_is_kept() -> None:
    assert talk(("book", {"people": "two", "day": "Monday"}), ("day", {"day": "Sunday"})) == [
        "Sorry, we are closed on Monday. Please choose another day.",
        "Sunday. At what time?",
    ]


def test_a_question_in_between_does_not_lose_the_booking() -> None:
    assert talk(("book", {"people": "two"}), "parking", ("day", {"day": "Sunday"})) == [
        "Two people. On what day?",
        "Yes, there is free parking behind the house.",
        "Sunday. At what time?",
    ]


def test_a_booking_of_this_call_is_changed_without_asking_for_the_name() -> None:
    assert talk(("book", BOOKED), "yes", ("change_time", {"time": "nine"}), "cancel")[2:] == [
        "Your table is now at nine.",
        "Miller. Your booking is cancelled.",
    ]


def test_a_booking_of_before_is_changed_under_its_name() -> None:
    assert talk(("change_day", {"day": "Sunday"}), ("name", {"name": "King"})) == [
        "Of course. What is your name?",
        "King. Your table is now on Sunday.",
    ]
    assert talk("change", ("name", {"name": "King"}), ("people", {"people": "six"})) == [
        "Of course. What is your name?",
        "King. What should I change?",
        "Your table is now for six.",
    ]


def test_a_booking_of_before_is_cancelled_under_its_name() -> None:
    assert talk("cancel", ("name", {"name": "Hill"})) == [
        "Of course. What is your name?", "Hill. Your booking is cancelled."]


def test_the_last_answer_is_repeated_however_often_and_after_a_plea_for_volume() -> None:
    assert talk("parking", "repeat", "louder", "repeat") == [
        "Yes, there is free parking behind the house.",
        "Yes, there is free parking behind the house.",
        "Of course. I will speak louder.",
        "Yes, there is free parking behind the house.",
    ]


def test_the_last_question_is_remembered_through_thanks() -> None:
    assert talk("last_question", "wine", "thanks", "last_question")[::3] == [
        "You have not asked me anything yet.", "You asked about the wine."]


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (("hours_day", {"day": "Saturday"}), "On Saturday we are open from noon to midnight."),
        (("hours_day", {"day": "Monday"}), "We are closed on Monday."),
        (("dish", {"dish": "risotto"}), "Yes, we have risotto on the menu."),
        (("dish", {"dish": "sushi"}), "Sorry, we do not have sushi."),
        (("dish_price", {"dish": "lasagna"}), "The lasagna costs fourteen dollars."),
        (("late", {"number": "ten"}), "Ten minutes is no problem. We will keep your table."),
        ("out_of_domain", "Sorry, I can only help with our restaurant."),
    ],
)
def test_facts_are_answered(heard: tuple[str, Slots] | str, expected: str) -> None:
    assert talk(heard) == [expected]


def test_every_intent_has_a_short_answer_in_known_words_at_every_stage() -> None:
    sentences, values = vocabulary(INTENTS)
    stages = [
        [],
        [("book", {})],
        [("book", BOOKED)],
        [("book", BOOKED), ("yes", {})],
        [("change", {})],
        [("cancel", {})],
    ]
    for before in stages:
        for intent in INTENTS.values():
            slots: Slots = {slot: VALUES[slot][1] for slot in slots_in(intent.training[-1])}
            said = talk(*before, (intent.name, slots))[-1]
            assert 2 <= len(said.split()) <= 15, said
            assert {word.strip(".,?").lower() for word in said.split()} <= sentences | values


def test_the_agents_own_words_are_few() -> None:
    sentences, _ = vocabulary(INTENTS)
    assert len(sentences) <= 240


def test_a_read_back_tells_its_booking() -> None:
    for seed in range(200):
        booking = draw_booking(Random(seed), held_out=bool(seed % 2))
        assert booking_in(read_back(booking)) == booking
    assert booking_in("Friday. At what time?") is None
