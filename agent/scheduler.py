"""Which slots step now (pure: fed times and frames, asked what is due).

A slot whose frame is complete is ready. Calls bring a frame every 80 ms, so the scheduler knows when each will be
ready next. It steps what is ready as soon as nobody else is expected within `gather_us` of the first one: a lone
call never waits, calls in phase step together. A call that joins is told where the others' boundary lies and
shifts its own frames there, in steps of its 20 ms chunks: that is why `gather_us` is a little
more than one chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Payload = TypeVar("Payload")

GATHER_US = 24_000  # one 20 ms chunk, and 4 ms for what a chunk may be late
FRAMES_WAITING = 2  # of one call; the next drops the oldest


@dataclass(frozen=True)
class Frame(Generic[Payload]):
    k: int
    payload: Payload
    arrived_us: int


@dataclass
class _Caller(Generic[Payload]):
    expected_us: int  # when its next frame will be complete
    waiting: deque[Frame[Payload]] = field(default_factory=deque)
    dropped: int = 0
    paused: bool = False


class Scheduler(Generic[Payload]):
    """Frames of many slots in, sets of slots that step together out. Times are microseconds of one steady clock."""

    def __init__(self, period_us: int, gather_us: int = GATHER_US) -> None:
        self.period_us = period_us
        self.gather_us = gather_us
        self._callers: dict[int, _Caller[Payload]] = {}

    def join(self, slot: int, now_us: int) -> int:
        """Take the slot in; returns the us to the boundary just before which its frames do best to end.

        The boundary lies within the coming period. Until the slot's first frame comes it is expected there, so
        that the next one to join is told the same.
        """
        if slot in self._callers:
            raise ValueError(f"slot {slot} is taken")
        to_boundary_us = self._us_to_boundary(now_us)
        self._callers[slot] = _Caller(expected_us=now_us + to_boundary_us)
        return to_boundary_us

    def leave(self, slot: int) -> int:
        """Forget the slot and what waits for it; returns how many of its frames were dropped in all."""
        return self._callers.pop(slot).dropped

    def add(self, slot: int, frame: Frame[Payload]) -> int | None:
        """Queue a frame; returns the k of the frame that had to give way, if one had."""
        caller = self._callers[slot]
        gone = None
        if len(caller.waiting) == FRAMES_WAITING:
            gone = caller.waiting.popleft().k
            caller.dropped += 1
        caller.waiting.append(frame)
        caller.expected_us = frame.arrived_us + self.period_us
        return gone

    def pause(self, slot: int, paused: bool = True) -> None:
        """Its frames wait, and nobody waits for them, until it isn't paused any more."""
        self._callers[slot].paused = paused

    def due(self, now_us: int) -> list[int]:
        """The slots that step now, in ascending order; empty when there is a reason to wait."""
        ready = self._ready()
        if ready and now_us >= self._deadline(ready):
            return sorted(ready)
        return []

    def wait_us(self, now_us: int) -> int | None:
        """How long until `due` can change by time alone; None: not before a frame comes."""
        ready = self._ready()
        return max(0, self._deadline(ready) - now_us) if ready else None

    def take(self, slots: Iterable[int]) -> list[Frame[Payload]]:
        """The oldest waiting frame of each slot."""
        return [self._callers[slot].waiting.popleft() for slot in slots]

    def _us_to_boundary(self, now_us: int) -> int:
        """To the moment at which most of the calls have their frames complete."""
        expected = [caller.expected_us for caller in self._callers.values()]
        if not expected:
            return 0
        boundary = max(expected, key=lambda end: (sum(self._before(other, end) < self.gather_us for other in expected),
                                                  -self._before(now_us, end)))
        return self._before(now_us, boundary)

    def _before(self, earlier_us: int, later_us: int) -> int:
        """How far `earlier` lies before `later` on the circle of one period."""
        return (later_us - earlier_us) % self.period_us

    def _ready(self) -> dict[int, int]:
        """Each ready slot and when its frame was complete."""
        return {slot: caller.waiting[0].arrived_us for slot, caller in self._callers.items()
                if caller.waiting and not caller.paused}

    def _deadline(self, ready: dict[int, int]) -> int:
        """When the ready slots step: when the last slot that is expected within reach should have come."""
        first_us = min(ready.values())
        last_us = first_us + self.gather_us
        expected = [caller.expected_us for slot, caller in self._callers.items()
                    if slot not in ready and not caller.paused and caller.expected_us <= last_us]
        # One who should have come by now gets the rest of the window: it is late by jitter, or it is gone for good
        # and then misses its turns: expected_us lies in the past by more than the window.
        awaited = [end for end in expected if end > first_us - self.gather_us]
        return last_us if awaited else first_us
