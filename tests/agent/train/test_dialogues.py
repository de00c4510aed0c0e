from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from agent.train import dialogues
from agent.train.dialogues import (
    EVALUATION_SHARES,
    NOTHING_HAPPENS,
    REPLY_S,
    Shares,
    callers_script,
    evaluation_script,
    jumbled_script,
    saying_script,
    training_script,
)
from agent.train.domain import reception
from agent.train.domain.reader import load
from agent.train.domain.reception import Heard, State, booking_in
from agent.train.domain.slots import fits, is_held_out
from agent.train.script import Line, Script
from agent.train.timing import line_spans, script_seconds, speech_seconds

SCRIPTS = [training_script(seed) for seed in range(300)]
EVALUATIONS = [evaluation_script(seed, kind) for kind in EVALUATION_SHARES for seed in range(15)]


def _pairs(scripts: list[Script]) -> Iterator[tuple[Line, Line]]:
    for script in scripts:
        yield from pairwise(script.lines)


def test_a_seed_gives_the_same_call_and_another_seed_another() -> None:
    assert training_script(7) == SCRIPTS[7]
    assert evaluation_script(3, "hold") == evaluation_script(3, "hold")
    assert len({script.lines for script in SCRIPTS}) == len(SCRIPTS)


def test_calls_last_from_twenty_seconds_to_two_minutes() -> None:
    lengths_s = [script_seconds(script) for script in SCRIPTS + EVALUATIONS]
    assert min(lengths_s) >= 19.9
    assert max(lengths_s) <= 120
    assert max(lengths_s) > 95  # a booking and a long silence need that


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Heard, State]]:
    """What the receptionist hears and knows in the scripts that the test writes."""
    found: list[tuple[Heard, State]] = []

    def noting(state: State, heard: Heard, intents: object) -> tuple[str, State]:
        text, after = reception.answer(state, heard, load().intents)
        found.append((heard, after))
        return text, after

    monkeypatch.setattr(dialogues, "answer", noting)
    return found


def test_callers_alone_say_what_they_say_in_the_call_and_nobody_answers() -> None:
    alone, call = callers_script(7), training_script(7, evenly=True)
    assert {line.speaker for line in alone.lines} == {"caller"}
    assert [(line.text, line.intent) for line in alone.lines] == [
        (line.text, line.intent) for line in call.lines if line.speaker == "caller"]
    assert not alone.held
    assert all(0.4 <= line.after_s <= 1.6 for line in alone.lines)
    scripts = [callers_script(seed) for seed in range(40)]
    spoken = sum(speech_seconds(line.text) for script in scripts for line in script.lines)
    assert spoken > 0.45 * sum(script_seconds(script) for script in scripts)
    calls = [training_script(seed) for seed in range(40)]
    common, rare = (len({line.text for script in some for line in script.lines if line.speaker == "caller"})
                    / sum(line.speaker == "caller" for script in some for line in script.lines)
                    for some in (calls, scripts))
    assert rare > 1.08 * common, "other sentences than those that most people say"


def test_jumbled_callers_say_training_s_words_in_another_order() -> None:
    scripts = [jumbled_script(seed) for seed in range(30)]
    assert scripts[3] == jumbled_script(3)
    lines = [line for script in scripts for line in script.lines]
    assert {(line.speaker, line.intent) for line in lines} == {("caller", None)}
    assert all(2 <= len(line.text.split()) <= 16 for line in lines)
    pairs = [pair for line in lines for pair in pairwise(line.text.split())]
    usual = {pair for script in (callers_script(seed) for seed in range(200)) for line in script.lines
             for pair in pairwise(line.text.split())}
    assert sum(pair in usual for pair in pairs) < 0.7 * len(pairs), "every word comes after many others"
    assert all(20 <= script_seconds(script) <= 70 for script in scripts)


def test_an_operators_sentences_are_of_all_kinds_and_none_is_the_agents_decision() -> None:
    scripts = [saying_script(seed) for seed in range(30)]
    assert scripts[3] == saying_script(3)
    said = [line for script in scripts for line in script.lines if line.kind == "said"]
    assert {line.speaker for script in scripts for line in script.lines} == {"agent"}
    assert not any(line.decided for line in said)
    assert len({line.text for line in said}) > 0.8 * len(said), "hardly any twice"
    assert all(20 <= script_seconds(script) <= 70 for script in scripts)


def test_training_never_contains_a_held_out_combination(heard: list[tuple[Heard, State]]) -> None:
    scripts = [training_script(seed) for seed in range(300)]
    assert sum(len(state.booking) == 4 for _, state in heard) > 300
    for said, state in heard:
        assert not is_held_out(said.slots)
        assert not is_held_out({**state.booking, **state.wanted})
    read_back = [found for script in scripts for line in script.lines if (found := booking_in(line.text))]
    assert len(read_back) > 100
    assert not any(is_held_out(booking) for booking in read_back)


def test_evaluation_books_only_held_out_combinations() -> None:
    scripts = [evaluation_script(seed, "booking") for seed in range(30)]
    first = [next(filter(None, (booking_in(line.text) for line in script.lines)), None) for script in scripts]
    assert None not in first
    assert all(is_held_out(booking) for booking in first if booking)


def test_training_and_evaluation_say_nothing_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[bool] = set()
    domain = load()

    def noting(intent: str, *, held_out: bool) -> tuple[str, ...]:
        asked.add(held_out)
        found = domain.intents[intent]
        return found.held_out if held_out else found.training

    noted = replace(domain)
    monkeypatch.setitem(noted.__dict__, "phrasings", noting)
    training_script(1, domain=noted)
    assert asked == {False}
    asked.clear()
    evaluation_script(1, domain=noted)
    assert asked == {True}


def test_every_intent_is_asked_in_training_and_in_evaluation() -> None:
    more = [evaluation_script(seed, kind) for kind in ("questions", "booking") for seed in range(15, 60)]
    for scripts in (SCRIPTS, EVALUATIONS + more):
        asked = {line.intent for script in scripts for line in script.lines if line.speaker == "caller"}
        assert asked - {None} == set(load().intents)


def test_an_answer_comes_half_a_second_after_the_caller_unless_it_is_arbitrary() -> None:
    for script in SCRIPTS:
        held_until = {span.until for span in script.held}
        for index, (before, line) in enumerate(pairwise(script.lines)):
            if line.speaker == "agent" and before.speaker == "caller" and line.decided and index not in held_until:
                assert REPLY_S[0] <= line.after_s <= REPLY_S[1]


def test_nobody_answers_an_unfinished_sentence_or_a_backchannel() -> None:
    for before, line in _pairs(SCRIPTS):
        if before.kind == "hesitation":
            assert (line.speaker, line.intent is None) == ("caller", False)
            assert line.after_s > 0.4
        if before.kind == "backchannel":
            assert line.speaker == "caller" or line.intent is not None  # an answer that was held meanwhile


def test_a_backchannel_into_an_answer_does_not_cut_it() -> None:
    into = [(before, line) for before, line in _pairs(SCRIPTS) if line.kind == "backchannel" and line.after_s < 0]
    assert len(into) > 100
    assert all(before.speaker == "agent" and before.cut_s is None for before, _ in into)
    assert all(-line.after_s < speech_seconds(before.text) for before, line in into)


def test_an_interrupted_agent_stops_soon_and_answers_the_new_question() -> None:
    for script in SCRIPTS:
        held = {span.line for span in script.held}
        for index, line in enumerate(script.lines):
            if line.cut_s is None or index in held:
                continue
            assert 0 < line.cut_s < speech_seconds(line.text)
            caller = script.lines[index + 1]
            assert caller.speaker == "caller"
            assert -0.45 <= caller.after_s <= -0.2
            answered = next(later for later in script.lines[index + 1:] if later.speaker == "agent" and later.intent)
            asked = [later for later in script.lines[index + 1:] if later.speaker == "caller" and later.intent]
            assert answered.intent == asked[0].intent


def test_a_read_back_is_always_heard_to_its_end() -> None:
    read_back = [line for script in SCRIPTS for line in script.lines if booking_in(line.text)]
    assert read_back
    assert all(line.cut_s is None for line in read_back)


def test_a_held_question_is_answered_after_the_hold() -> None:
    held_s = []
    for script in SCRIPTS:
        spans = line_spans(script.lines)
        for span in script.held:
            begin_s, end_s = spans[span.line][1] + span.begin_s, spans[span.until][1] + span.end_s
            if span.begin_s < -100:  # from the call's begin: no greeting, whoever speaks first is the caller
                assert script.lines[0].speaker == "caller"
                continue
            held_s.append(end_s - begin_s)
            following = script.lines[span.until + 1] if span.until + 1 < len(script.lines) else None
            if following and following.speaker == "agent":
                assert script.lines[span.line].intent == following.intent
                assert REPLY_S[0] - 0.05 <= spans[span.until + 1][0] - end_s <= REPLY_S[1] + 0.02
            for line, (line_begin_s, _) in zip(script.lines, spans, strict=True):
                if line.speaker == "agent":
                    assert not begin_s + 0.11 < line_begin_s < end_s, f"{line.text!r} begins in a hold"
    assert min(held_s) > 1.5
    assert max(held_s) > 10


def test_what_the_agent_was_made_to_say_is_marked_as_not_its_decision() -> None:
    unasked = [line for script in SCRIPTS for line in script.lines if line.speaker == "agent" and line.intent is None]
    assert len(unasked) > 200
    assert not any(line.decided for line in unasked if line.text != reception.GREETING)
    arbitrary = [line.after_s for _, line in _pairs(SCRIPTS) if line.intent and not line.decided]
    assert sum(after_s < 0.13 for after_s in arbitrary) > 50  # very early
    assert sum(after_s > 0.89 for after_s in arbitrary) > 50  # late


def test_each_thing_that_happens_in_a_call_can_be_left_out() -> None:
    shares = replace(NOTHING_HAPPENS, booking=0.3)
    for seed in range(30):
        script = training_script(seed, shares=shares)
        assert not script.held
        for line in script.lines:
            assert (line.kind, line.cut_s, line.decided) == ("speech", None, True)
            assert line.after_s > 0


@pytest.mark.parametrize(
    ("shares", "happened"),
    [
        (Shares(interruption=1, held=0, held_mid_answer=0), lambda line: line.cut_s is not None),
        (Shares(interruption=0, held_mid_answer=0, backchannel=1), lambda line: line.kind == "backchannel"),
        (Shares(hesitation=1), lambda line: line.kind == "hesitation"),
        (Shares(forced_start=1, silence=0), lambda line: line.text == reception.STILL_THERE),
        (Shares(forced_over_caller=1), lambda line: line.text == reception.GO_ON and line.after_s < 0),
        (Shares(silence=1), lambda line: line.after_s >= 8),
    ],
)
def test_each_share_makes_its_thing_happen(shares: Shares, happened: object) -> None:
    lines = [line for seed in range(20) for line in training_script(seed, shares=shares).lines]
    assert callable(happened)
    assert sum(map(happened, lines)) >= 20


def test_silence_lasts_up_to_a_minute() -> None:
    pauses_s = [line.after_s for script in SCRIPTS for line in script.lines if line.speaker == "caller"]
    assert 45 < max(pauses_s) <= 60


def test_an_evaluation_call_has_its_kind_of_event_and_no_other() -> None:
    def kinds(script: Script) -> set[str]:
        return {line.kind for line in script.lines}

    by_kind = {kind: [evaluation_script(seed, kind) for seed in range(10)] for kind in EVALUATION_SHARES}
    assert all(line.cut_s is None for script in by_kind["questions"] for line in script.lines)
    assert any(line.cut_s for script in by_kind["interruption"] for line in script.lines)
    assert any("backchannel" in kinds(script) for script in by_kind["backchannel"])
    assert any("hesitation" in kinds(script) for script in by_kind["hesitation"])
    assert all(script.held for script in by_kind["hold"])
    assert not any(script.held for kind, scripts in by_kind.items() if kind != "hold" for script in scripts)
    assert all(kinds(script) == {"speech"} for kind in ("questions", "booking", "changes", "hold")
               for script in by_kind[kind])  # fmt: skip


def test_callers_say_phrasings_of_their_intent() -> None:
    """A line without opener, closer or pause is one of its intent's phrasings."""
    shares = replace(NOTHING_HAPPENS, greeting=0)
    for seed in range(20):
        for line in training_script(seed, shares=shares).lines:
            if line.speaker == "caller" and line.intent in ("yes", "thanks", "goodbye", "repeat", "louder"):
                assert line.text in [p for p in load().intents[line.intent].training if fits(p, {})]
