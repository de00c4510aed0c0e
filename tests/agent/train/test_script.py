from __future__ import annotations

import pytest

from agent.train.script import Held, Line, Script

LINES = (Line("caller", "is there parking", 1.0), Line("agent", "Yes.", 5.0))


def test_a_line_needs_words() -> None:
    with pytest.raises(ValueError, match="line of the agent has no text"):
        Line("agent", " ", 0.0)


def test_a_line_is_cut_after_its_begin() -> None:
    with pytest.raises(ValueError, match="cut_s of 'Yes.' must be above 0"):
        Line("agent", "Yes.", 0.0, cut_s=0.0)


@pytest.mark.parametrize("span", [Held(0, 0.0, 2, 1.0), Held(1, 0.0, 0, 1.0), Held(-1, 0.0, 0, 1.0)])
def test_a_hold_names_lines_that_are_there(span: Held) -> None:
    with pytest.raises(ValueError, match="names a line that is not among the 2"):
        Script("call", LINES, (span,))


def test_a_hold_ends_after_its_begin() -> None:
    Script("call", LINES, (Held(0, -0.3, 0, 4.0),))
    with pytest.raises(ValueError, match="ends before it begins"):
        Script("call", LINES, (Held(0, 2.0, 0, 2.0),))
