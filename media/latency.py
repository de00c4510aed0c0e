"""Where a call's time goes: each frame's way from the caller's last sample to the agent's first, hop by hop (pure).

    received ──take──▶ sent ──link──▶ waited ──▶ stepped ──link──▶ back ──playout──▶ heard
             bridge          link      wait        step                  playout

Moments are seconds by one monotonic clock of the bridge; what the worker did with a frame it tells itself, as
durations. Durations are kept as histograms, so that a call of hours takes no more room than one of minutes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass

from calls.events import BINS_S, HOPS, Measure

FRAMES_ON_THEIR_WAY = 64  # whose marks are kept until they are complete; about 5 s
_BIN_S, _BINS = 0.0005, 4000  # half a millisecond, up to 2 s: what takes longer counts as that
QUANTILES = (0.5, 0.95, 0.99)


class Histogram:
    """Durations, each to half a millisecond."""

    def __init__(self) -> None:
        self.count, self.total_s = 0, 0.0
        self._bins: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """One that is below zero, as clocks of two machines may make it, counts as zero."""
        seconds = max(0.0, seconds)
        place = min(_BINS, int(seconds / _BIN_S))
        self._bins[place] = self._bins.get(place, 0) + 1
        self.count += 1
        self.total_s += seconds

    def quantile(self, share: float) -> float | None:
        """The least duration that is not exceeded by this share of them; None where there are none."""
        wanted, seen = math.ceil(share * self.count), 0
        for place in sorted(self._bins):
            seen += self._bins[place]
            if seen >= max(1, wanted):
                return (place + 0.5) * _BIN_S
        return None

    def measure(self, name: str) -> Measure:
        p50, p95, p99 = map(self.quantile, QUANTILES)
        return Measure(name, self.count, round(self.total_s, 4), p50, p95, p99, self._coarse() if self.count else ())

    def _coarse(self) -> tuple[int, ...]:
        """By BINS_S."""
        bins = [0] * (len(BINS_S) + 1)
        for place, count in self._bins.items():
            bins[bisect_right(BINS_S, (place + 0.5) * _BIN_S)] += count
        return tuple(bins)


@dataclass
class _Marks:
    received: float
    sent: float | None = None
    back: float | None = None
    wait_s: float | None = None
    step_s: float | None = None


class Latency:
    """One call's frames. Marks come in any order between `received` and `heard`; a frame that lacks one when it is
    heard counts in what it has."""

    def __init__(self) -> None:
        self._frames: OrderedDict[int, _Marks] = OrderedDict()
        self._hops = {hop: Histogram() for hop in HOPS}

    def received(self, k: int, at: float) -> None:
        """The caller's frame k was complete."""
        self._frames[k] = _Marks(at)
        if len(self._frames) > FRAMES_ON_THEIR_WAY:
            self._frames.popitem(last=False)

    def sent(self, k: int, at: float) -> None:
        if (marks := self._frames.get(k)) is not None:
            marks.sent = at

    def stepped(self, k: int, wait_s: float, step_s: float) -> None:
        """What the worker tells: how long the frame waited for its step, and how long that took."""
        if (marks := self._frames.get(k)) is not None:
            marks.wait_s, marks.step_s = wait_s, step_s

    def back(self, k: int, at: float) -> None:
        if (marks := self._frames.get(k)) is not None:
            marks.back = at

    def heard(self, k: int, at: float) -> None:
        """The agent's frame k began to be heard."""
        if (marks := self._frames.pop(k, None)) is None:
            return
        self._hops["whole"].add(at - marks.received)
        if marks.sent is not None:
            self._hops["bridge"].add(marks.sent - marks.received)
        if marks.back is not None:
            self._hops["playout"].add(at - marks.back)
        if marks.wait_s is not None and marks.step_s is not None:
            self._hops["wait"].add(marks.wait_s)
            self._hops["step"].add(marks.step_s)
            if marks.sent is not None and marks.back is not None:
                self._hops["link"].add(marks.back - marks.sent - marks.wait_s - marks.step_s)

    def measures(self) -> list[Measure]:
        return [histogram.measure(hop) for hop, histogram in self._hops.items()]
