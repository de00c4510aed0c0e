from __future__ import annotations

import numpy as np
import pytest

from agent.train.acoustics import Condition, Echo
from agent.train.render import Call, cut, render
from agent.train.script import Held, Line, Script
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Samples, Speech
from agent.train.voices import AGENT, Talker, Voice

WORD_S = 0.3
CALLER = Talker(Voice("espeak", "gmw/en-GB+m1"))
LEVELS = {AGENT: 0.5, CALLER: 0.25}


def say(text: str, talker: Talker) -> Speech:
    """A stand-in that takes 0.3 s for each word, at a level that tells who speaks."""
    words = text.split()
    pcm = np.full(round(WORD_S * len(words) * SAMPLE_RATE), LEVELS.get(talker, 0.1), np.float32)
    times = [(word, n * WORD_S, (n + 1) * WORD_S) for n, word in enumerate(words)]
    return Speech(pcm, tuple(times), tuple((word[0], begin, end) for word, begin, end in times))


def rendered(
    *lines: Line, held: tuple[Held, ...] = (), condition: Condition | None = None, tail_s: float = 1.0,
) -> Call:
    script = Script("call-1", lines, held, tail_s)
    return render(script, say, CALLER, condition or Condition(), np.random.default_rng(0))


def heard_spans(track: Samples) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], track != 0, [False])))) / SAMPLE_RATE
    return [(round(begin, 3), round(end, 3)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def test_each_side_is_heard_on_its_own_track_at_its_time() -> None:
    call = rendered(Line("caller", "is there parking", 0.5), Line("agent", "Yes, there is.", 0.3))
    assert heard_spans(call.caller) == [(0.5, 1.4)]
    assert heard_spans(call.agent) == [(1.76, 2.66)]  # 1.7 s, on the next border
    assert (call.caller.max(), call.agent.max()) == (0.25, 0.5)


def test_the_agent_begins_on_frame_borders_and_the_call_is_whole_frames() -> None:
    call = rendered(*(Line("agent", "Hello there.", 0.13) for _ in range(5)))
    begins = np.flatnonzero(np.diff(np.concatenate(([0], call.agent))) > 0)
    assert len(begins) == 5
    assert not np.any(begins % FRAME_SAMPLES)
    assert call.agent.shape == call.caller.shape
    assert call.agent.size % FRAME_SAMPLES == 0
    assert call.duration_s - call.utterances[-1].end_s == pytest.approx(1.0, abs=0.08)


def test_words_of_both_sides_come_in_the_order_of_time() -> None:
    call = rendered(Line("agent", "Good evening to you.", 0.0), Line("caller", "hello there", -0.75))
    assert [(word.speaker, word.text, word.begin_s) for word in call.words] == [
        ("agent", "Good", 0.0), ("agent", "evening", 0.3), ("caller", "hello", 0.45),
        ("agent", "to", 0.6), ("caller", "there", 0.75), ("agent", "you.", 0.9),
    ]
    assert [(phoneme.text, phoneme.begin_s) for phoneme in call.phonemes if phoneme.speaker == "caller"] == [
        ("h", 0.45), ("t", 0.75),
    ]


def test_an_interrupted_agent_stops_at_the_end_of_a_word_and_fades() -> None:
    call = rendered(
        Line("agent", "We are open from noon to ten.", 0.0, cut_s=1.0), Line("caller", "and on sundays", -0.4),
    )
    said, asked = call.utterances
    assert (said.text, said.end_s, said.cut) == ("We are open", 0.9, True)
    assert asked.begin_s == pytest.approx(0.5)
    assert [word.text for word in call.words if word.speaker == "agent"] == ["We", "are", "open"]
    assert call.agent[round(0.85 * SAMPLE_RATE)] == 0.5
    assert 0 < call.agent[round(0.895 * SAMPLE_RATE)] < 0.25
    assert not call.agent[round(0.9 * SAMPLE_RATE):].any()


def test_a_line_that_is_over_before_it_is_cut_is_whole() -> None:
    speech = say("just two", CALLER)
    assert cut(speech, 5.0) is speech
    call = rendered(Line("agent", "Just two.", 0.0, cut_s=5.0))
    assert (call.utterances[0].text, call.utterances[0].cut) == ("Just two.", False)


def test_at_least_one_word_is_said_before_a_cut() -> None:
    assert cut(say("we are open", CALLER), 0.01).words == (("we", 0.0, 0.3),)


def test_nobody_begins_while_they_still_speak_or_before_the_call() -> None:
    call = rendered(
        Line("caller", "hello", -2.0), Line("agent", "Good evening to you.", 0.0), Line("caller", "yes", -1.1),
        Line("agent", "Sorry?", 0.0),
    )
    spans = [(utterance.begin_s, utterance.end_s) for utterance in call.utterances]
    assert spans[0] == (0.0, 0.3)
    assert spans[1] == (0.32, 1.52)
    assert spans[2] == (pytest.approx(0.42), pytest.approx(0.72))  # over the agent
    assert spans[3] == (1.52, 1.82)  # not before its own words end


def test_held_spans_are_counted_from_the_lines_around_them() -> None:
    call = rendered(
        Line("caller", "is there parking", 0.5), Line("caller", "hello", 3.0), Line("agent", "Yes.", 1.2),
        held=(Held(0, -0.2, 1, 1.0),),
    )
    assert call.held == ((pytest.approx(1.2), pytest.approx(5.7)),)


@pytest.mark.parametrize(("held", "complaint"), [
    (Held(0, 0.0, 0, 3.0), r"held from 1.40 to 4.40 s and says 'Yes.' at 2.00 s"),
    (Held(0, 9.0, 1, 0.1), r"held from 10.40 to 2.40 s"),
])
def test_a_script_that_no_held_agent_can_follow_is_refused(held: Held, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"call-1: the agent is {complaint}"):
        rendered(Line("caller", "is there parking", 0.5), Line("agent", "Yes.", 0.6), held=(held,))


def test_what_the_script_knows_of_a_line_stays_with_it() -> None:
    call = rendered(
        Line("agent", "Are you still there?", 2.0, decided=False), Line("caller", "uh huh", 0.2, kind="backchannel"),
        Line("caller", "what time is it", 0.5, intent="time"),
    )
    assert [utterance.decided for utterance in call.utterances] == [False, True, True]
    assert [utterance.kind for utterance in call.utterances] == ["speech", "backchannel", "speech"]
    assert [utterance.intent for utterance in call.utterances] == [None, None, "time"]


def test_the_callers_line_is_theirs_alone() -> None:
    plain = rendered(Line("agent", "Hello.", 0.0), Line("caller", "hi", 0.5))
    echoed = rendered(Line("agent", "Hello.", 0.0), Line("caller", "hi", 0.5), condition=Condition(echo=Echo(0.1, 0.2)))
    assert np.array_equal(plain.agent, echoed.agent)
    assert echoed.caller[round(0.3 * SAMPLE_RATE)] == pytest.approx(0.05)


def test_babble_is_made_of_other_voices() -> None:
    call = rendered(Line("caller", "hi", 0.5), condition=Condition(babble_db=-10))
    assert call.caller[:1000].any()
    assert [word.text for word in call.words] == ["hi"]


def test_a_script_may_be_silent_but_not_endless() -> None:
    assert not rendered(tail_s=2.0).agent.any()
    assert rendered(tail_s=2.0).duration_s == 2.0
    for tail_s in (0.0, 3600.0):
        with pytest.raises(ValueError, match=f"call-1: a call of {tail_s:.1f} s, not of 0.08 to 600 s"):
            rendered(tail_s=tail_s)
