"""A line in the voice of a speech model, on its way from the thread that makes it to the steps that say it (pure).

    sound of the line, frame i    0      1      2      3  …            the speech model's
    text of step j = i            PAD    EPAD   ▁Good  PAD             the agent's pieces, where their sound begins
    codes of step j               each codebook's of frame j - delay   so that the model hears itself say it
    sound of step j               frame j - largest delay              which the caller hears
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.moshi.text import EPAD, PAD

LEAD = 6  # steps that are ready before a line begins: half a second for what the maker may be late


@dataclass(frozen=True)
class SaidStep:
    """What one step of the call is told."""

    text: int
    codes: tuple[int, ...]  # of the agent's codebooks, -1: free
    pcm: bytes | None  # s16le; None: the agent's own sound


class Saying:
    """One line. `put`, `finish` and `fail` are the maker's, the rest is the call's: one thread each."""

    def __init__(self) -> None:
        self._steps: deque[SaidStep] = deque()
        self._ended = False
        self.failed = ""  # why no more comes
        self.cancelled = False

    def put(self, step: SaidStep) -> None:
        self._steps.append(step)

    def finish(self) -> None:
        self._ended = True

    def fail(self, why: str) -> None:
        self.failed = why or "the speech model failed"

    @property
    def ahead(self) -> int:
        """Steps that are ready."""
        return len(self._steps)

    @property
    def ready(self) -> bool:
        """Whether it may begin."""
        return self._ended or len(self._steps) >= LEAD

    @property
    def over(self) -> bool:
        return self._ended and not self._steps

    def next(self) -> SaidStep | None:
        """The next step; None where it isn't made yet."""
        return self._steps.popleft() if self._steps else None

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.cancelled = True


@dataclass
class TextTrack:
    """The text stream of a line: each word's pieces from the frame on in which its sound begins, or as soon after it as
    the word before is over; EPAD just before, where there is room."""

    tokens: list[int] = field(default_factory=list)

    def add(self, frame: int, words: Iterable[list[int]]) -> None:
        """One word of the speech model's, which may be several of the agent's; they come in their order."""
        for pieces in words:
            self.tokens += [PAD] * (frame - 1 - len(self.tokens))
            if len(self.tokens) < frame:
                self.tokens.append(EPAD)
            self.tokens += pieces

    def at(self, frame: int) -> int:
        return self.tokens[frame] if frame < len(self.tokens) else PAD
