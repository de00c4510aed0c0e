from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.monologue import (
    FREE,
    LONGEST_GAP,
    MAX_PIECES,
    MAX_WAITING,
    OUTCOMES,
    Action,
    Command,
    Force,
    Monologue,
    Outcome,
    word_splitter,
)
from agent.moshi.checkpoint import BUNDLED
from agent.moshi.text import EPAD, PAD, Tokenizer
from agent.step import TextMode

_PIECE = 100  # the first piece of the tests' words: word n is n pieces from there


def _words_of(text: str) -> list[list[int]]:
    """Each word is a number: of how many pieces it has."""
    return [list(range(_PIECE, _PIECE + int(word))) for word in text.split()]


@dataclass
class Call:
    """A monologue and a model that takes what it is told, and PAD where it is free."""

    monologue: Monologue
    k: int = 0

    @classmethod
    def new(cls) -> Call:
        return cls(Monologue(_words_of))

    def frame(self, *commands: Command, wish: int = PAD) -> tuple[Force, list[Outcome]]:
        """One frame in which the model would take `wish`."""
        k, self.k = self.k, self.k + 1
        outcomes = [outcome for command in commands for outcome in self.monologue.take(command, k)]
        force = self.monologue.force(k)
        return force, outcomes + self.monologue.took(k, _taken(force, wish))


def _taken(force: Force, wish: int) -> int:
    if force.text_mode is TextMode.TOLD:
        return wish if wish in (PAD, EPAD) else force.forced_text
    if force.forced_text >= 0:
        return force.forced_text
    if force.text_mode is TextMode.WORD_ONLY:
        return wish if wish not in (PAD, EPAD) else _PIECE
    return wish


def _forced(call: Call, *commands: Command, frames: int, wish: int = PAD) -> list[Force]:
    return [call.frame(*(commands if at == 0 else ()), wish=wish)[0] for at in range(frames)]


def _token(token: int, muted: bool = False) -> Force:
    return Force(forced_text=token, muted=muted)


def test_without_a_command_the_model_is_free() -> None:
    call = Call.new()
    assert [call.frame() for _ in range(3)] == [(FREE, [])] * 3


def test_speak_forces_epad_and_then_a_word_and_then_leaves_the_model_free() -> None:
    call = Call.new()
    assert call.frame(Command("a", Action.SPEAK)) == (_token(EPAD), [])
    assert call.frame() == (Force(TextMode.WORD_ONLY), [Outcome("a", "spoke", 0, 1)])
    assert call.frame() == (FREE, [])


def test_hold_keeps_the_agent_silent_until_release() -> None:
    call = Call.new()
    assert call.frame(Command("a", Action.HOLD)) == (_token(PAD), [Outcome("a", "held", 0, 0)])
    assert _forced(call, frames=200, wish=EPAD) == [_token(PAD)] * 200
    assert call.frame(Command("b", Action.RELEASE), wish=EPAD) == (FREE, [Outcome("b", "released", 201, 201)])


def test_a_muted_hold_asks_for_the_codes_of_silence_too() -> None:
    call = Call.new()
    assert _forced(call, Command("a", Action.HOLD, mute=True), frames=3) == [_token(PAD, muted=True)] * 3
    assert _forced(call, Command("b", Action.HOLD), frames=3) == [_token(PAD)] * 3


def test_say_forces_word_by_word_and_lets_the_model_choose_its_pauses() -> None:
    call = Call.new()
    forces = [call.frame(Command("a", Action.SAY, "2 1"))[0], *(call.frame()[0] for _ in range(2))]
    assert forces == [_token(EPAD), _token(_PIECE), _token(_PIECE + 1)]
    gap = Force(TextMode.TOLD, _PIECE)
    assert call.frame(wish=PAD) == (gap, [])
    assert call.frame(wish=EPAD) == (gap, [])
    assert call.frame() == (_token(_PIECE), [Outcome("a", "said", 0, 5)])
    assert call.frame() == (FREE, [])


def test_a_word_that_the_model_would_begin_at_once_is_the_told_one_and_needs_no_epad() -> None:
    call = Call.new()
    forces = _forced(call, Command("a", Action.SAY, "1 2 1 1"), frames=7, wish=_PIECE + 7)
    told = Force(TextMode.TOLD, _PIECE)
    assert forces == [_token(EPAD), _token(_PIECE), told, _token(_PIECE + 1), told, told, FREE]


def test_a_model_that_never_begins_the_next_word_is_made_to() -> None:
    call = Call.new()
    forces = _forced(call, Command("a", Action.SAY, "1 1"), frames=2 + LONGEST_GAP + 2)
    assert forces[2:-2] == [Force(TextMode.TOLD, _PIECE)] * LONGEST_GAP
    assert forces[-2:] == [_token(EPAD), _token(_PIECE)]


def test_a_held_agent_says_a_line_and_is_held_again() -> None:
    call = Call.new()
    call.frame(Command("a", Action.HOLD, mute=True))
    assert _forced(call, Command("b", Action.SAY, "1"), frames=3) == [
        _token(EPAD), _token(_PIECE), _token(PAD, muted=True)]


def test_speak_ends_a_hold() -> None:
    call = Call.new()
    call.frame(Command("a", Action.HOLD))
    assert _forced(call, Command("b", Action.SPEAK), frames=3) == [_token(EPAD), Force(TextMode.WORD_ONLY), FREE]


def test_hold_cuts_what_is_said_and_what_waits() -> None:
    call = Call.new()
    call.frame(Command("a", Action.SAY, "1 1 1"), Command("b", Action.SAY, "1"))
    force, outcomes = call.frame(Command("c", Action.HOLD))
    assert force == _token(PAD)
    assert outcomes == [Outcome("a", "superseded", 0, 1), Outcome("b", "superseded", 1, 1), Outcome("c", "held", 1, 1)]


def test_lines_wait_for_each_other_and_at_the_bound_one_is_refused() -> None:
    call = Call.new()
    lines = [Command(str(n), Action.SAY, "1") for n in range(MAX_WAITING + 1)]
    _, outcomes = call.frame(*lines)
    assert [(outcome.id, outcome.outcome) for outcome in outcomes] == [(str(MAX_WAITING), "refused")]
    said = [outcome.id for _ in range(40) for outcome in call.frame()[1] if outcome.outcome == "said"]
    assert said == [str(n) for n in range(MAX_WAITING)]


def test_speak_is_needless_while_a_line_is_said() -> None:
    call = Call.new()
    call.frame(Command("a", Action.SAY, "1 1"))
    assert call.frame(Command("b", Action.SPEAK))[1] == [Outcome("b", "already", 1, 1)]


@pytest.mark.parametrize(("text", "why"), [
    ("", "there is nothing in it that the model can say"),
    (str(MAX_PIECES + 1), f"longer than {MAX_PIECES} pieces of words"),
])
def test_a_line_that_cannot_be_said_is_refused(text: str, why: str) -> None:
    assert Call.new().frame(Command("a", Action.SAY, text)) == (FREE, [Outcome("a", "refused", 0, 0, why)])


def test_a_whisper_is_fed_a_piece_a_frame_in_silence() -> None:
    call = Call.new()
    assert call.frame(Command("a", Action.WHISPER, "2 1"))[0] == _token(_PIECE, muted=True)
    assert call.frame()[0] == _token(_PIECE + 1, muted=True)
    assert call.frame() == (_token(_PIECE, muted=True), [Outcome("a", "whispered", 0, 2)])
    assert call.frame()[0] == FREE


def test_what_a_call_ends_in_the_middle_of_is_told() -> None:
    call = Call.new()
    call.frame(Command("a", Action.HOLD))
    call.frame(Command("b", Action.SAY, "3"), Command("c", Action.SAY, "1"))
    assert call.monologue.end(2) == [Outcome("b", "call_ended", 1, 2), Outcome("c", "call_ended", 2, 2)]


_ACTIONS = st.tuples(st.sampled_from(Action), st.sampled_from(["", "1", "3", "1 2 1", "600"]), st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.lists(_ACTIONS, max_size=3), st.sampled_from([PAD, EPAD, 7])), max_size=60))
def test_any_commands_in_any_order_are_legal_bounded_and_have_one_outcome_each(
        frames: list[tuple[list[tuple[Action, str, bool]], int]]) -> None:
    call, given_ids, outcomes = Call.new(), [], []
    for told, wish in frames:
        commands = [Command(f"{call.k}.{n}", *one) for n, one in enumerate(told)]
        given_ids += [command.id for command in commands]
        force, new = call.frame(*commands, wish=wish)
        assert force.forced_text >= -1
        assert force.text_mode in TextMode
        assert (force.forced_text >= 0) or force.text_mode is not TextMode.TOLD, "which word?"
        assert force.forced_text < 0 or force.text_mode is not TextMode.WORD_ONLY, "a forced token needs no mode"
        outcomes += new
    outcomes += call.monologue.end(call.k)
    assert Counter(outcome.id for outcome in outcomes) == Counter(given_ids)
    assert all(outcome.outcome in OUTCOMES and 0 <= outcome.first_k <= outcome.k <= call.k for outcome in outcomes)
    assert call.monologue.force(call.k) == FREE, "at its end nothing is forced any more"


@settings(max_examples=50, deadline=None)
@given(st.lists(_ACTIONS, max_size=8))
def test_after_a_release_the_model_is_free_within_what_the_lines_take(told: list[tuple[Action, str, bool]]) -> None:
    call = Call.new()
    call.frame(*(Command(str(n), *one) for n, one in enumerate(told)), Command("end", Action.RELEASE))
    assert call.frame()[0] is not None
    longest = (MAX_WAITING + 1) * 4 * (LONGEST_GAP + 4)
    assert FREE in _forced(call, frames=longest)[-1:]


def test_words_are_split_as_the_tokenizer_writes_them() -> None:
    tokenizer = Tokenizer(BUNDLED["nano"] / "tokenizer.model")
    words = word_splitter(tokenizer)("  We open\nat twelve.  ")
    assert [tokenizer.decode(word) for word in words] == ["We", "open", "at", "twelve."]
    assert word_splitter(tokenizer)(" \u4e2d\u6587 \U0001f600 ") == []

