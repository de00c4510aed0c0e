"""A caller, frame by frame: hears the agent, says the next line when it is time. Pure: no clock, no sound card.

      quiet for pause_s            line over              agent speaks             quiet for SETTLED_S
    ┌─ PAUSING ─────────▶ SAYING ───────────▶ WAITING ─────────────▶ HEARING ───────────────┐
    │                        ▲                   │ nothing for listen_s │ into_s             │
    │                        └───────────────────┼──────────────────────┘ (interrupts)       │
    └──────────── the plan's next turn ◀─────────┴───────────────────────────────────────────┘

A back-channel is said within HEARING. Frame k is what the caller hears, and says, from k * 80 ms of its own clock on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

import numpy as np

from agent.evaluate.judging import loud_pieces
from agent.evaluate.plans import Plan, Turn
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Samples

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
SETTLED_S = 1.0  # of quiet, after which the agent's answer is over: longer than between its sentences
LONGEST_ANSWER_S = 15.0  # then the caller goes on all the same
LONGEST_PAUSE_S = 15.0  # in which the agent isn't quiet for as long as the caller would like
LONGEST_CALL_S = 180.0
WORD_GAP_S = 0.3  # of quiet within speech
EARLY_S = 0.2  # an answer may begin so long before the caller's line is quite over

Speak = Callable[[str], Samples]  # a line as it reaches the agent


class Control(Enum):
    """What is forced upon the agent in a frame."""

    FREE = auto()
    HOLD = auto()  # PAD
    SPEAK = auto()  # EPAD


@dataclass(frozen=True)
class HeardWord:
    """A word of the agent, with the seconds of the caller's clock in which it is heard."""

    text: str
    begin_s: float
    end_s: float


@dataclass
class Said:
    """A turn as it came about, in seconds of the caller's clock. A turn without words begins and ends at once."""

    turn: Turn
    begin_s: float
    end_s: float
    held_k: tuple[int, int] | None = None  # the first frame of a hold, and the first after it
    forced_k: int | None = None  # the frame in which the agent was made to speak
    while_speaking: bool = False  # it was begun while the agent was heard

    @property
    def held_s(self) -> tuple[float, float] | None:
        return (self.held_k[0] * FRAME_S, self.held_k[1] * FRAME_S) if self.held_k else None


@dataclass(frozen=True)
class Frame:
    """What the caller says in a frame, and what is forced upon the agent in it."""

    pcm: Samples  # [FRAME_SAMPLES]
    control: Control = Control.FREE


class _Phase(Enum):
    PAUSING = auto()
    SAYING = auto()
    WAITING = auto()
    HEARING = auto()
    OVER = auto()


_SILENCE = np.zeros(FRAME_SAMPLES, np.float32)


@dataclass
class ScriptedCaller:
    """Feed it frame after frame by `step` until it is `over`; `said` and `words` are what there is to judge."""

    plan: Plan
    speak: Speak
    random: Random
    said: list[Said] = field(default_factory=list)
    words: list[HeardWord] = field(default_factory=list)
    k: int = 0
    _phase: _Phase = _Phase.PAUSING
    _turn: Turn | None = None
    _into: Turn | None = None
    _sound: Samples = field(default_factory=lambda: np.zeros(0, np.float32))  # still to be said
    _phase_s: float = 0.0  # since when it is in this phase
    _loud_until_s: float = -math.inf  # the end of the last frame in which the agent was heard
    _loud_now: bool = False

    def __post_init__(self) -> None:
        self._take(self.plan.next(""))

    @property
    def over(self) -> bool:
        return self._phase is _Phase.OVER

    @property
    def now_s(self) -> float:
        return self.k * FRAME_S

    def step(self, heard: Samples, words: Sequence[HeardWord] = ()) -> Frame:
        """One frame: `heard` [FRAME_SAMPLES] is what the agent's side sounds like in it, `words` those of the agent
        that have become known since. What is said in the same frame comes back."""
        self.words += words
        self._loud_now = bool(loud_pieces(heard).any())
        if self._loud_now:
            self._loud_until_s = self.now_s + FRAME_S
        if self.now_s >= LONGEST_CALL_S:
            self._phase = _Phase.OVER
        self._advance()
        frame = Frame(self._next_sound(), self._control())
        self.k += 1
        return frame

    def heard_since(self, begin_s: float) -> str:
        """The agent's words from this moment on."""
        return " ".join(word.text for word in self.words if word.begin_s >= begin_s)

    # What happens at a frame's begin.

    def _advance(self) -> None:
        turn = self._turn
        if turn is None or self.over:
            return
        in_phase_s, quiet_s = self.now_s - self._phase_s, self.now_s - max(0.0, self._loud_until_s)
        if self._phase is _Phase.PAUSING:
            if quiet_s >= turn.pause_s or in_phase_s >= LONGEST_PAUSE_S:
                self._begin(turn)
        elif self._phase is _Phase.SAYING:
            if self.now_s >= self.said[-1].end_s:
                self._enter(_Phase.WAITING)
        elif self._phase is _Phase.WAITING:
            self._wait(turn)
        elif self._phase is _Phase.HEARING:
            if self._into is not None and in_phase_s >= (self._into.into_s or 0.0):
                into, self._into = self._into, None
                self._begin(into)
            elif not self._sound.size and (quiet_s >= SETTLED_S or in_phase_s >= LONGEST_ANSWER_S):
                self._take(self.plan.next(self.heard_since(self._answer_from_s())))

    def _wait(self, turn: Turn) -> None:
        said = self.said[-1]
        begins_s = max(said.end_s, said.held_s[1] if said.held_s else 0.0)  # to listen
        if turn.stays:
            if self.now_s - begins_s >= turn.listen_s:
                self._take(self.plan.next(self.heard_since(self._answer_from_s())))
        elif self._loud_now and self.now_s >= begins_s:
            self._into = self.plan.into()
            self._enter(_Phase.HEARING)
        elif self.now_s - begins_s >= turn.listen_s:
            self._take(self.plan.next(""))

    def _begin(self, turn: Turn) -> None:
        """The turn begins in this frame, its sound somewhere in it as people do."""
        lead = self.random.randrange(FRAME_SAMPLES) if turn.text else 0
        sound = self.speak(turn.text) if turn.text else _SILENCE[:0]
        begin_s = self.now_s + lead / SAMPLE_RATE
        end_s = begin_s + sound.size / SAMPLE_RATE
        said = Said(turn, begin_s, end_s, while_speaking=self.now_s - self._loud_until_s < WORD_GAP_S)
        self._sound = np.concatenate([_SILENCE[:lead], sound])
        if turn.hold is not None:
            first_s, after_s = max(self.now_s, end_s + turn.hold.begin_s), end_s + turn.hold.end_s
            said.held_k = math.ceil(first_s / FRAME_S - 1e-9), math.ceil(after_s / FRAME_S - 1e-9)
        if turn.speak:
            said.forced_k = self.k
        self.said.append(said)
        if turn.answered:
            self._turn = turn
            self._enter(_Phase.SAYING)

    def _take(self, turn: Turn | None) -> None:
        self._turn, self._into = turn, None
        self._enter(_Phase.OVER if turn is None else _Phase.PAUSING)

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._phase_s = phase, self.now_s

    def _answer_from_s(self) -> float:
        """From when on the agent's words answer the last line that asks for an answer."""
        ends = [said.end_s for said in self.said if said.turn.answered]
        return ends[-1] - EARLY_S if ends else -math.inf

    # What goes out.

    def _next_sound(self) -> Samples:
        now, self._sound = self._sound[:FRAME_SAMPLES], self._sound[FRAME_SAMPLES:]
        return now if now.size == FRAME_SAMPLES else np.concatenate([now, _SILENCE[now.size:]])

    def _control(self) -> Control:
        said = self.said[-1] if self.said else None
        if said is not None and said.forced_k == self.k:
            return Control.SPEAK
        if said is not None and said.held_k is not None and said.held_k[0] <= self.k < said.held_k[1]:
            return Control.HOLD
        return Control.FREE
