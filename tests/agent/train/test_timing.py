from __future__ import annotations

import pytest

from agent.train.script import Line, Script
from agent.train.timing import line_spans, script_seconds, speech_seconds


@pytest.mark.parametrize(
    ("text", "measured_s"),  # of the agent's voice
    [
        ("Yes, there is free parking behind the house.", 2.69),
        ("A table for four on Friday at seven thirty, under Miller. Is that right?", 4.50),
        ("You are very welcome.", 1.14),
        ("Of course. For how many people?", 2.20),
    ],
)
def test_the_estimate_is_near_the_agents_voice(text: str, measured_s: float) -> None:
    assert speech_seconds(text) == pytest.approx(measured_s, abs=0.3)


def test_a_cut_line_ends_where_it_is_cut_and_an_overlap_begins_before_the_end() -> None:
    answer = Line("agent", "Yes, there is free parking behind the house.", 1.0, cut_s=1.5)
    lines = (answer, Line("caller", "stop", -0.4))
    (begin_s, end_s), (over_s, _) = line_spans(lines)
    assert (begin_s, end_s, over_s) == pytest.approx((1.0, 2.5, 2.1))


def test_the_tail_counts() -> None:
    line = Line("caller", "hello", 2.0)
    assert script_seconds(Script("call", (line,), tail_s=3.0)) == pytest.approx(5.0 + speech_seconds("hello"))
