"""About how long speech takes, so that a script can be planned before there is sound."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.train.script import Line, Script

# Fitted to the agent's voice (espeak-ng, 160 words a minute): within 0.3 s on its answers. Callers speak 15 % slower
# to 25 % faster.
_SECONDS_A_CHARACTER = 0.055
_SENTENCE_PAUSE_S = 0.5
_COMMA_PAUSE_S = 0.25
_SENTENCE_END = re.compile(r"[.?!] ")


def speech_seconds(text: str) -> float:
    """About how many seconds it takes to say `text`."""
    pauses = _SENTENCE_PAUSE_S * len(_SENTENCE_END.findall(text)) + _COMMA_PAUSE_S * text.count(", ")
    return _SECONDS_A_CHARACTER * len(text) + pauses


def line_seconds(line: Line) -> float:
    """About how many seconds a line takes, or until it is cut."""
    whole = speech_seconds(line.text)
    return whole if line.cut_s is None else min(whole, line.cut_s)


def line_spans(lines: Sequence[Line]) -> list[tuple[float, float]]:
    """About when each line begins and ends, in seconds from the call's begin."""
    spans: list[tuple[float, float]] = []
    end_s = 0.0
    for line in lines:
        begin_s = max(0.0, end_s + line.after_s)
        end_s = begin_s + line_seconds(line)
        spans.append((begin_s, end_s))
    return spans


def lines_seconds(lines: Sequence[Line]) -> float:
    """About when the last of these lines has ended."""
    return max((end_s for _, end_s in line_spans(lines)), default=0.0)


def script_seconds(script: Script) -> float:
    """About how long the call is, its tail included."""
    return lines_seconds(script.lines) + script.tail_s
