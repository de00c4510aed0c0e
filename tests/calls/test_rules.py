from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from calls.rules import Rule, RuleBook


def _book(**rule: Any) -> RuleBook:
    return RuleBook((Rule(**{"do": "say", "text": "hello", **rule}),))


def test_a_greeting_is_due_when_the_call_begins_and_then_never_again() -> None:
    book = _book(when="answered")
    assert book.answered() == [0]
    assert book.answered() == book.advance(100, 100, caller_spoke=True) == book.heard(1, "hello") == []


def test_silence_is_due_after_so_long_and_anew_when_somebody_has_spoken() -> None:
    book = _book(when="silence", after_s=10, times=2)
    quiet = [3, 9.9, 10, 11, 30, 0, 5, 10, 0, 10]
    assert [book.advance(at, now, caller_spoke=False) for at, now in enumerate(quiet)] == [
        [], [], [0], [], [], [], [], [0], [], []]


def test_a_time_is_due_once() -> None:
    book = _book(when="time", after_s=60)
    assert [book.advance(at, 0, caller_spoke=True) for at in (59, 60, 61)] == [[], [0], []]


def test_an_agent_that_is_silent_until_spoken_to_is_released_by_the_callers_first_words() -> None:
    book = RuleBook((Rule("answered", "hold"), Rule("caller_spoke", "release")))
    assert book.answered() == [0]
    assert [book.advance(at, 0, caller_spoke=at > 1) for at in range(4)] == [[], [], [1], []]


@pytest.mark.parametrize(("said", "due"), [
    ("Could I speak to a HUMAN, please?", True), ("a humane society", False), ("your manager", True),
    ("give me the man ager", False), ("", False)])
def test_words_are_found_as_words(said: str, due: bool) -> None:
    assert bool(_book(when="words", words=("a human", "manager")).heard(1, said)) == due


def test_words_count_once_in_an_utterance_that_grows_and_again_in_the_next() -> None:
    book = _book(when="words", words=("human",), times=2)
    said = [(1, "a"), (1, "a human"), (1, "a human please"), (9, "human"), (20, "human")]
    assert [book.heard(*one) for one in said] == [[], [0], [], [0], []]


def test_an_agent_that_breaks_is_handed_over_once() -> None:
    book = RuleBook((Rule("answered", "hold"), Rule("broken", "transfer", to="sip:desk@127.0.0.1")))
    assert [book.broken(), book.broken()] == [[1], []]


def test_a_rule_is_a_control_by_a_name_that_tells_which() -> None:
    control = Rule("words", "hold", mute=True, words=("stop",)).control("call-1", 2)
    assert (control.call, control.action, control.mute, control.by) == ("call-1", "hold", True, "rule 3: words")


@pytest.mark.parametrize(("rule", "why"), [
    ({"when": "silence"}, "after_s belongs"), ({"when": "answered", "after_s": 3}, "after_s belongs"),
    ({"when": "words"}, "words belong"), ({"when": "time", "after_s": 1, "words": ["a"]}, "words belong"),
    ({"when": "words", "words": ["?!"]}, "letters or digits"),
    ({"when": "answered", "text": ""}, "say: give the text"), ({"when": "answered", "do": "speak"}, "takes no text"),
    ({"when": "sometimes"}, "when"), ({"when": "answered", "do": "transfer"}, "do"),
    ({"when": "time", "after_s": 0}, "after_s"), ({"when": "answered", "mute": True}, "only a hold"),
])
def test_a_rule_that_cant_be_meant_is_refused(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        _book(**rule)
