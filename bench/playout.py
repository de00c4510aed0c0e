"""What having no piece in hand costs and saves: one Playout that may come to that beside one that keeps a piece.

No clock and no sound: frames that come as late as drawn, over calls in which the agent speaks half of the time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from media.audio import CHUNK_S, CHUNKS_PER_FRAME, FRAME_BYTES, FRAME_S, FRAME_SAMPLES
from media.playout import IN_HAND, IN_HAND_SHAKY, Playout

CALLS, SECONDS = 12, 180
TURN_S = 2.0  # of speech, then as much silence
_LOUD, _QUIET = np.full(FRAME_SAMPLES, 5000, "<i2").tobytes(), bytes(FRAME_BYTES)
_P99 = 2.326  # of a normal distribution

Late = Callable[[random.Random], float]


def run() -> list[str]:
    rows = ["| a frame is back after | late, one kept | late, none | ms to be heard, one kept | none |",
            "|---|---|---|---|---|"]
    for name, late in _WAYS.items():
        (late_1, ms_1), (late_0, ms_0) = (_calls(late, least) for least in (IN_HAND, 0))
        rows.append(f"| {name} | {late_1} | {late_0} | {ms_1:.0f} | {ms_0:.0f} |")
    return [f"{CALLS} calls of {SECONDS} s; from the tick that ends a caller's frame to the agent's of that number:",
            "", *rows]


def _calls(late: Late, least: int) -> tuple[int, float]:
    """Frames that came too late to be heard in time, and the mean delay in ms, of all calls."""
    underruns, delays = 0, []
    for seed in range(CALLS):
        playout, drawn = Playout(in_hand=IN_HAND_SHAKY, least=least), random.Random(seed)
        came, last_s = [], 0.0
        for k in range(round(SECONDS / FRAME_S)):
            last_s = max(last_s, _ends(k) + late(drawn))
            came.append((k, last_s))
        waiting = iter(came)
        k, at = next(waiting)
        for tick in range(CHUNKS_PER_FRAME * len(came)):
            while at < tick * CHUNK_S:
                playout.push(k, _LOUD if k * FRAME_S % (2 * TURN_S) < TURN_S else _QUIET, at)
                k, at = next(waiting, (k, math.inf))
            playout.pop(tick * CHUNK_S)
            delays += [heard.at - _ends(heard.k) for heard in playout.take_heard()]
        underruns += playout.counts.underruns
    return underruns, 1000 * float(np.mean(delays))


def _ends(k: int) -> float:
    return (CHUNKS_PER_FRAME * (k + 1) - 1) * CHUNK_S


def _between(p50_ms: float, p99_ms: float) -> Late:
    spread = math.log(p99_ms / p50_ms) / _P99
    return lambda drawn: p50_ms / 1000 * math.exp(spread * drawn.gauss(0, 1))


def _with_hiccups(every_s: float, most_ms: float) -> Late:
    usual = _between(1.5, 3)
    return lambda drawn: usual(drawn) + (
        drawn.uniform(5, most_ms) / 1000 if drawn.random() < FRAME_S / every_s else 0.0)


_WAYS: dict[str, Late] = {
    "1.5 ms (p99 3)": _between(1.5, 3), "the same, and 5 to 30 ms more every 20 s": _with_hiccups(20, 30),
    "the same, and 5 to 50 ms more every 60 s": _with_hiccups(60, 50), "12 ms (p99 14)": _between(12, 14),
    "25 ms (p99 28)": _between(25, 28), "20 ms (p99 25)": _between(20, 25), "20 ms (p99 40)": _between(20, 40),
    "16 ms (p99 38)": _between(16, 38), "26 ms (p99 69)": _between(26, 69),
}
