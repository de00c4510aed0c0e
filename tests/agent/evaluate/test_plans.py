"""What callers do: drawn by seed, and in a booking led by the agent's questions."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from agent.evaluate.plans import MOST_BOOKING_TURNS, Booking, Planner, Turn, asked_in, read_back_in
from agent.train.domain.reader import load
from agent.train.domain.reception import QUESTIONS, read_back
from agent.train.domain.slots import BOOKING_SLOTS, Slots, is_held_out, slots_in

BOOKED: Slots = {"people": "four", "day": "Friday", "time": "seven thirty", "name": "Baker"}


def planner(seed: int = 0, *, held_out: bool = False) -> Planner:
    return Planner(load(), Random(seed), held_out)


def talked(booking: Booking, agent: Callable[[Turn, list[str]], str]) -> list[Turn]:
    """The turns of a booking with an agent that is told the caller's turn and what it asked before."""
    turns, heard, said = [], "", list[str]()
    while (turn := booking.next(heard)) is not None:
        turns.append(turn)
        heard = agent(turn, said)
        said.append(heard)
    return turns


def reception(wanted: Slots, asks: list[str]) -> Callable[[Turn, list[str]], str]:
    """Asks these slots, whatever was said, then reads `wanted` back."""
    def agent(_turn: Turn, said: list[str]) -> str:
        left = asks[len(said) - 1:] if said else []
        if not said:
            return "Casa Tandem, hello. How can I help you?"
        if left:
            return f"Of course. {QUESTIONS[left[0]]}"
        return read_back(wanted) if len(said) == len(asks) + 1 else "Your table is booked."

    return agent


def test_the_caller_says_what_the_agent_asks_for_in_the_agents_order() -> None:
    booking = planner().booking(held_out_slots=True)
    asks = ["name", "time", "people", "day"]
    turns = talked(booking, reception(booking.wanted, asks))
    assert [turn.intent for turn in turns] == [None, "book", *asks, "yes"]
    assert booking.read_back == booking.wanted


def test_a_wrong_read_back_is_kept_and_not_agreed_to() -> None:
    booking = planner().booking(held_out_slots=True)
    wrong = {**booking.wanted, "people": "two" if booking.wanted["people"] != "two" else "three"}
    turns = talked(booking, reception(wrong, []))
    assert booking.read_back == wrong != booking.wanted
    assert turns[-1].intent == "no"


@pytest.mark.parametrize("heard", ["", "The moon is made of cheese.", QUESTIONS["day"]])
def test_a_booking_ends_with_an_agent_that_never_gets_on(heard: str) -> None:
    booking = planner().booking(held_out_slots=False)
    turns = talked(booking, lambda _turn, _said: heard)
    assert len(turns) <= MOST_BOOKING_TURNS
    assert booking.read_back is None


def test_bookings_hold_out_combinations_apart_from_phrasings() -> None:
    for phrasings in (False, True):
        for slots in (False, True):
            booking = planner(held_out=phrasings).booking(held_out_slots=slots)
            assert is_held_out(booking.wanted) is slots
            assert booking.caller.held_out is phrasings


def test_the_question_that_counts_is_the_last() -> None:
    assert asked_in("Friday. At what time?") == "time"
    assert asked_in("for how many people on what day") == "day"
    assert asked_in("Sorry, we are closed on Monday. Please choose another day.") == "day"
    assert asked_in("Casa Tandem, hello. How can I help you?") is None


def test_a_read_back_is_found_among_other_words() -> None:
    assert read_back_in(f"Baker. {read_back(BOOKED)}") == BOOKED
    assert read_back_in("A table for four, under Baker.") is None
    assert set(BOOKED) == set(BOOKING_SLOTS)


def test_every_question_is_asked_before_one_is_asked_again() -> None:
    made = planner()
    asked = [turn.intent for _ in range(23) for turn in made.questions(3).turns if turn.text]
    kinds = len(set(asked))
    assert len(asked) == 69
    assert kinds in (69, *range(60, 69))
    assert len(set(asked[:kinds])) == kinds


def test_held_out_questions_use_no_phrasing_of_training() -> None:
    domain, made = load(), planner(held_out=True)
    for turn in [turn for _ in range(10) for turn in made.questions(3).turns if turn.text]:
        intent = domain.intents[turn.intent or ""]
        if not any(slots_in(phrasing) for phrasing in intent.held_out):
            assert any(phrasing in turn.text for phrasing in intent.held_out)
            assert not any(phrasing == turn.text for phrasing in intent.training)


def test_interruptions_and_backchannels_fall_into_answers_that_are_long_enough() -> None:
    made = planner()
    for _ in range(20):
        _, asked, into = made.interruption().turns
        assert into.into_s is not None
        assert into.into_s >= 0.8
        assert asked.intent != into.intent
        _, _, said = made.backchannel().turns
        assert (said.answered, said.expected) == (False, None)


def test_a_line_into_an_answer_is_left_out_where_there_was_no_answer() -> None:
    plan = planner().interruption()
    assert plan.next("") is not None
    assert plan.next("Hello.") is not None
    assert plan.next("") is None
