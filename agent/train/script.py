"""What is said in a call, by whom and when: text and timing only, so that it is written before there is sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Speaker = Literal["agent", "caller"]
LineKind = Literal["speech", "backchannel", "hesitation", "said"]


@dataclass(frozen=True)
class Line:
    """One stretch of speech of one speaker.

    `after_s`: silence between the end of the line before it (in the order of lines; the call's begin for the first) and
    its own begin; negative: it overlaps that line. A line that is cut ends where it is cut.
    `kind`: "backchannel" asks for no answer; "hesitation" is a filler or the unfinished first part of what the
    speaker's next line goes on with; "said" is an operator's, word for word by the agent: none of its text is learnt.
    `intent`: what a caller's line means, or what an agent's line answers; None on hesitations and back-channels.
    """

    speaker: Speaker
    text: str
    after_s: float
    cut_s: float | None = None  # the speaker is interrupted and stops so many seconds after its begin, on a word's end
    kind: LineKind = "speech"
    intent: str | None = None
    decided: bool = True  # False: that it begins now was forced or arbitrary: the text loss is masked where it begins

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"a line of the {self.speaker} has no text")
        if self.cut_s is not None and self.cut_s <= 0:
            raise ValueError(f"cut_s of {self.text!r} must be above 0, not {self.cut_s}")


@dataclass(frozen=True)
class Held:
    """A span in which the agent was forced silent, told by the lines around it.

    It begins `begin_s` after the end of `lines[line]` (negative: while that line is still spoken) and ends `end_s`
    after the end of `lines[until]`; `until` may be the same line or a later one that the caller says meanwhile.
    """

    line: int
    begin_s: float
    until: int
    end_s: float


@dataclass(frozen=True)
class Script:
    """A call. Whoever turns it into sound adds `tail_s` of silence after the last line."""

    name: str
    lines: tuple[Line, ...]
    held: tuple[Held, ...] = ()
    tail_s: float = 1.0

    def __post_init__(self) -> None:
        for span in self.held:
            if not 0 <= span.line <= span.until < len(self.lines):
                raise ValueError(f"{self.name}: {span} names a line that is not among the {len(self.lines)}")
            if span.line == span.until and span.end_s <= span.begin_s:
                raise ValueError(f"{self.name}: {span} ends before it begins")
