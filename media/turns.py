"""Who speaks when, from the sound of both sides: how soon the agent answers, how soon it yields (pure).

Both sides come as 20 ms pieces of the call's clock. A side speaks from its first loud piece of several until it has
been quiet for a while; what is loud is told against -45 dBFS (design: "The monologue") and, for the caller, whose line
may be noisy, against the noise around them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from calls.events import TURNS, Measure
from media.audio import CHUNK_S
from media.latency import Histogram

SPEECH_DB = -45.0  # dBFS of a piece that is speech
ABOVE_NOISE_DB = 12.0  # what the caller's speech has above their noise
BEGIN_PIECES, BEGIN_WITHIN = 3, 5  # so many loud pieces of so many begin speech: a click is none
QUIET_S = 0.3  # that end speech
LONGEST_ANSWER_S = 5.0  # after the caller's end; what comes later answers nothing
LONGEST_GAP_S = 10.0  # of the caller's, before they take their turn
BACKCHANNEL_S = 1.0  # the longest speech into the agent's that may be one
LONGEST_YIELD_S = 3.0  # after which an agent that goes on is taken not to yield
_NOISE_FALL, _NOISE_RISE = 0.2, 0.002  # how fast the noise is followed, of the distance, a piece
_SILENT_DB = -100.0


@dataclass
class _Side:
    """When one side speaks."""

    floor_db: float | None = None  # of the noise, where it is followed
    speaking: bool = False
    began_s: float = 0.0  # of the speech that goes on, or was the last
    ended_s: float = -math.inf  # its last loud piece's end
    _recent: tuple[bool, ...] = ()

    def hear(self, at_s: float, rms: float) -> tuple[bool, bool]:
        """One piece that begins at `at_s`: whether speech has begun with it, or ended."""
        level_db = 20 * math.log10(rms) if rms > 0 else _SILENT_DB
        loud = level_db > SPEECH_DB
        if self.floor_db is not None:
            loud = loud and level_db > self.floor_db + ABOVE_NOISE_DB
            rate = _NOISE_FALL if level_db < self.floor_db else _NOISE_RISE
            self.floor_db += rate * (max(level_db, _SILENT_DB) - self.floor_db)
        self._recent = (*self._recent[1 - BEGIN_WITHIN:], loud)
        begins = ends = False
        if loud:
            self.ended_s = at_s + CHUNK_S
        if not self.speaking and sum(self._recent) >= BEGIN_PIECES:
            self.speaking = begins = True
            first = self._recent.index(True)
            self.began_s = at_s - (len(self._recent) - 1 - first) * CHUNK_S
        elif self.speaking and at_s + CHUNK_S - self.ended_s >= QUIET_S:
            self.speaking = False
            ends = True
            self._recent = ()
        return begins, ends


class Turns:
    """One call's. `hear` takes both sides' loudness, piece after piece."""

    def __init__(self) -> None:
        self._agent, self._caller = _Side(), _Side(floor_db=SPEECH_DB - ABOVE_NOISE_DB)
        self._now_s = self._operator_s = 0.0
        self._asked_s: float | None = None  # the caller's end, while it waits for an answer
        self._answered_s: float | None = None  # the agent's end, while it waits for the caller
        self._into_s: float | None = None  # the caller's begin, where they speak into the agent's speech
        self._passed: tuple[float, float] | None = None  # a short speech into the agent's: begin and end
        self._measured = {name: Histogram() for name in TURNS}
        self._both = False
        self.overlap_s = 0.0
        self.overlaps = self.interruptions = self.backchannels = 0

    def hear(self, tick: int, heard_rms: float, said_rms: float, *, by_operator: bool = False) -> None:
        """The piece of this tick; ticks rise. RMS of 1.0 is full scale. What an operator says in the agent's place is
        no answer of the agent's, but no quiet either."""
        at_s = tick * CHUNK_S
        if by_operator:
            self._operator_s, heard_rms = at_s, 0.0
        self._now_s = at_s
        agent, caller = self._agent, self._caller
        caller_begins, caller_ends = caller.hear(at_s, said_rms)
        agent_begins, agent_ends = agent.hear(at_s, heard_rms)
        both = agent.speaking and caller.speaking
        self.overlap_s += CHUNK_S * both
        self.overlaps += both and not self._both
        self._both = both
        if agent_begins:
            self._agent_begins()
        if agent_ends:
            self._agent_ends()
        if caller_begins:
            self._caller_begins()
        if caller_ends:
            self._caller_ends()
        self._settle(at_s)

    @property
    def quiet_s(self) -> float:
        """For how long nobody has spoken: since the call began, where nobody has yet."""
        if self._agent.speaking or self._caller.speaking:
            return 0.0
        return self._now_s - max(0.0, self._agent.ended_s, self._caller.ended_s, self._operator_s)

    @property
    def caller_spoke(self) -> bool:
        """The caller has said something, and is done."""
        return self._caller.began_s > 0 and not self._caller.speaking

    def measures(self) -> list[Measure]:
        return [histogram.measure(name) for name, histogram in self._measured.items()] + [
            counted("overlap", self.overlaps, self.overlap_s), counted("interruption", self.interruptions),
            counted("backchannel", self.backchannels)]

    def _agent_begins(self) -> None:
        if self._asked_s is not None and not self._caller.speaking:
            waited_s = self._agent.began_s - self._asked_s
            if waited_s <= LONGEST_ANSWER_S:
                self._measured["response"].add(waited_s)
        self._asked_s = self._answered_s = None

    def _agent_ends(self) -> None:
        self._answered_s = self._agent.ended_s
        if self._into_s is not None:  # it has yielded to somebody who speaks
            self._yielded(self._into_s)
        elif self._passed is not None and self._agent.ended_s - self._passed[1] < QUIET_S:
            self._yielded(self._passed[0])
        self._passed = self._into_s = None

    def _caller_begins(self) -> None:
        self._asked_s = None
        if self._agent.speaking and self._agent.ended_s > self._caller.began_s:
            self._into_s = self._caller.began_s
        elif self._answered_s is not None:
            gap_s = self._caller.began_s - self._answered_s
            if gap_s <= LONGEST_GAP_S:
                self._measured["gap"].add(gap_s)
        self._answered_s = None

    def _caller_ends(self) -> None:
        if self._into_s is not None and self._agent.speaking:
            if self._caller.ended_s - self._into_s <= BACKCHANNEL_S:
                self._passed = self._into_s, self._caller.ended_s
            self._into_s = None
        if not self._agent.speaking:
            self._asked_s = self._caller.ended_s

    def _settle(self, at_s: float) -> None:
        """What time decides: an agent that went on after a few words, or over somebody who spoke on."""
        if self._passed is not None and self._agent.speaking and at_s - self._passed[1] > 2 * QUIET_S:
            self.backchannels += 1
            self._passed = None
        if self._into_s is not None and at_s - self._into_s > LONGEST_YIELD_S:
            self.interruptions += 1
            self._into_s = None

    def _yielded(self, since_s: float) -> None:
        self.interruptions += 1
        self._measured["yield"].add(self._agent.ended_s - since_s)


def counted(name: str, count: int, total_s: float = 0.0) -> Measure:
    """What has no distribution."""
    return Measure(name, count, round(total_s, 2), None, None, None)
