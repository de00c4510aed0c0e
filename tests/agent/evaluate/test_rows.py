"""Scripted callers meet agents of known natures: every row of the table says what they are like."""

from __future__ import annotations

import pytest
from evaluate_fakes import WORDS, FakeEngine, Nature, speak

from agent.evaluate.judging import Share, share_of
from agent.evaluate.offline import converse
from agent.evaluate.recogniser import sentences_of
from agent.evaluate.rows import ROWS, Dialogue, Lengths, Trial, cast, judge
from agent.train.domain.reader import load

COUNT = 6


def talked(key: str, nature: Nature, **lengths: float) -> tuple[list[Dialogue], list[Trial]]:
    """A row's callers and trials, with a recogniser that hears a sound wherever there is one."""
    domain = load()
    dialogues = cast(ROWS[key], COUNT, 1, domain, speak, lengths=Lengths(**lengths))
    converse(FakeEngine(dialogues, nature), WORDS, dialogues)
    sentences = sentences_of(domain)
    hear = lambda sound: "something" if abs(sound).max(initial=0) > 0.01 else ""  # noqa: E731
    return dialogues, [trial for dialogue in dialogues for trial in judge(dialogue, sentences, hear)]


def shares(key: str, nature: Nature, **lengths: float) -> dict[str, Share]:
    _, trials = talked(key, nature, **lengths)
    assert trials
    return {name: share_of(trial.verdicts[name] for trial in trials) for name in trials[0].verdicts}


ALL, NONE = Share(COUNT, COUNT), Share(0, COUNT)


def test_right_answers_are_right_and_their_latency_is_measured() -> None:
    dialogues, trials = talked("voices", Nature())
    assert share_of(trial.verdicts["exact"] for trial in trials) == ALL
    assert all(trial.answer is not None and abs(trial.answer).max() > 0.05 for trial in trials)
    for trial in trials:  # the reply's frames, its token's delay, the caller's frame that is under way
        assert trial.latency_s is not None
        assert 0.2 <= trial.latency_s <= 0.5
    assert len(dialogues) == COUNT / 3


@pytest.mark.parametrize("nature", [Nature(wrong=True), Nature(answers=False)], ids=["wrong", "silent"])
def test_wrong_answers_and_none_are_wrong(nature: Nature) -> None:
    assert shares("voices", nature) == {"exact": NONE, "meant": NONE}


def test_an_agent_that_does_not_greet_is_asked_all_the_same() -> None:
    assert shares("voices", Nature(greets=False))["exact"] == ALL


def test_an_interrupted_agent_is_quiet_and_answers_the_new_question() -> None:
    assert shares("interruption", Nature()) == {"quiet": ALL, "exact": ALL, "meant": ALL}


def test_an_agent_that_talks_on_is_told_from_one_that_stops() -> None:
    assert shares("interruption", Nature(stops_for_interruptions=False))["quiet"] == NONE



def test_an_answer_that_never_came_can_not_be_interrupted_and_is_not_counted() -> None:
    _, trials = talked("interruption", Nature(answers=False))
    assert not trials


def test_a_backchannel_must_not_stop_the_answer() -> None:
    assert shares("backchannel", Nature()) == {"whole": ALL, "exact": ALL}
    assert shares("backchannel", Nature(stops_for_backchannels=True)) == {"whole": NONE, "exact": NONE}


def test_a_forced_start_is_heard_within_five_frames() -> None:
    assert shares("speak", Nature()) == {"begins": ALL}
    assert shares("speak", Nature(obeys_speak=False)) == {"begins": NONE}


def test_forced_padding_is_silence_to_the_ear_and_to_the_recogniser() -> None:
    assert shares("hold", Nature()) == {"quiet": ALL, "unheard": ALL}
    assert shares("hold", Nature(obeys_hold=False)) == {"quiet": NONE, "unheard": NONE}


def test_a_held_question_is_answered_after_its_release() -> None:
    assert shares("held", Nature(), held_s=3.0) == {"exact": ALL, "meant": ALL, "quiet": ALL}
    assert shares("held", Nature(forgets_when_held=True), held_s=3.0)["exact"] == NONE
    assert shares("held", Nature(obeys_hold=False), held_s=3.0)["quiet"] == NONE


def test_the_hold_is_as_long_as_asked_for() -> None:
    _, trials = talked("held", Nature(), held_s=8.0)
    for trial in trials:
        assert trial.said.held_s is not None
        assert trial.said.held_s[1] - trial.said.end_s == pytest.approx(8.0, abs=0.08)
        assert trial.said.held_s[0] < trial.said.end_s


def test_talk_in_a_long_silence_is_noticed() -> None:
    assert shares("silence", Nature(), silence_s=20.0) == {"quiet": ALL}
    assert shares("silence", Nature(talks_unasked_after_s=8.0), silence_s=20.0) == {"quiet": NONE}


def test_the_same_seed_makes_the_same_calls_whatever_the_number_of_slots() -> None:
    def told(slots: int) -> list[object]:
        dialogues = cast(ROWS["phrasings"], COUNT, 7, load(), speak)
        converse(FakeEngine(dialogues, Nature(), slots), WORDS, dialogues)
        return [(said.turn.text, said.begin_s, dialogue.talker) for dialogue in dialogues
                for said in dialogue.caller.said]

    assert told(1) == told(4)
    assert {dialogue.talker for dialogue in cast(ROWS["phrasings"], 30, 8, load(), speak)} != \
        {dialogue.talker for dialogue in cast(ROWS["phrasings"], 30, 7, load(), speak)}


def test_slots_are_filled_again_as_callers_hang_up() -> None:
    dialogues = cast(ROWS["backchannel"], 5, 1, load(), speak)
    engine, over = FakeEngine(dialogues, Nature(), slots=2), []
    converse(engine, WORDS, dialogues, over.append)
    assert engine.largest_batch == 2
    assert over == [1, 2, 3, 4, 5]
    assert all(dialogue.heard is not None for dialogue in dialogues)
