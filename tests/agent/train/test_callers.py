from __future__ import annotations

from random import Random

import pytest

from agent.train.callers import Caller, Episode, Habits, Knowledge, Turn, booking, cancelling, changing
from agent.train.domain.reader import load
from agent.train.domain.reception import CHANGES, answer
from agent.train.domain.slots import DISHES, NAMES, Slots

DOMAIN = load()
QUIET = Habits(opener=0, closer=0, side_question=0, repeat=0, thanks=0, first_wrong=0, closed_day=0)


def caller(seed: int, habits: Habits = QUIET, *, held_out: bool = False) -> Caller:
    return Caller(DOMAIN, Random(seed), held_out, habits)


def carried_out(episode: Episode, known: Knowledge) -> list[Turn]:
    """The caller's turns, with the receptionist answering each."""
    turns = []
    for turn in episode:
        _, known.state = answer(known.state, turn.heard, DOMAIN.intents)
        turns.append(turn)
        assert len(turns) < 30
    return turns


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("habits", [QUIET, Habits(first_wrong=1, closed_day=1, repeat=0.3, side_question=0.3)])
def test_a_caller_who_books_ends_with_a_table(held_out: bool, habits: Habits) -> None:
    for seed in range(40):
        known = Knowledge()
        carried_out(booking(caller(seed, habits, held_out=held_out), known), known)
        assert known.state.booked
        assert set(known.state.booking) == {"people", "day", "time", "name"}


def test_a_caller_who_was_understood_says_each_value_once() -> None:
    for seed in range(40):
        known = Knowledge()
        turns = carried_out(booking(caller(seed), known), known)
        said = [slot for turn in turns for slot in turn.heard.slots]
        assert sorted(said) == ["day", "name", "people", "time"]


def test_a_change_of_mind_ends_in_what_the_caller_wants() -> None:
    corrected = 0
    for seed in range(40):
        known = Knowledge()
        habits = Habits(first_wrong=1, closed_day=0, side_question=0, repeat=0)
        turns = carried_out(booking(caller(seed, habits), known), known)
        last: Slots = {}
        for turn in turns:
            last.update(turn.heard.slots)
        assert last == known.state.booking
        corrected += any(turn.heard.intent in ("correct", "no") for turn in turns)
    assert corrected > 35


def test_a_table_is_changed_and_cancelled_with_or_without_a_booking_in_the_call() -> None:
    for seed in range(40):
        known = Knowledge()
        one = caller(seed)
        if seed % 2:
            carried_out(booking(one, known), known)
        before = dict(known.state.booking)
        turns = carried_out(changing(one, known), known)
        assert known.state.booked
        differing = {slot for slot, value in known.state.booking.items() if value != before.get(slot)}
        assert len(differing - {"name"}) == 1
        assert any(turn.heard.intent in CHANGES | {"change"} for turn in turns)
        names = [turn.heard.slots["name"] for turn in turns if "name" in turn.heard.slots]
        assert (names == []) == bool(seed % 2)  # the name is asked for only where it isn't known
        carried_out(cancelling(one, known), known)
        assert not known.state.booked


def test_asking_again_means_the_same() -> None:
    one = caller(1)
    asked = one.ask("dish")
    again = [one.again(asked) for _ in range(20)]
    assert {turn.heard.slots["dish"] for turn in again} == {asked.heard.slots["dish"]} <= set(DISHES)
    assert len({turn.text for turn in again}) > 5


def test_openers_and_closers_stand_around_the_phrasing() -> None:
    polite = caller(1, Habits(opener=1, closer=1))
    turns = [polite.say("parking") for _ in range(50)]
    assert any(turn.text.endswith(("please", "thanks", "thank you", "okay")) for turn in turns)
    plain = DOMAIN.intents["parking"].training
    assert all(any(phrasing in turn.text for phrasing in plain) for turn in turns)
    assert any(turn.text not in plain for turn in turns)


def test_a_short_reply_stays_bare() -> None:
    polite = caller(1, Habits(opener=1, closer=1))
    assert all(polite.say("yes").text in DOMAIN.intents["yes"].training for _ in range(30))
    spoken = [polite.say("name", {"name": NAMES[0]}).text for _ in range(30)]
    assert not any(text.startswith(("um", "excuse me")) for text in spoken)
