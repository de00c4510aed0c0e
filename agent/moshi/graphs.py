"""Steps that are captured once and then replayed as a whole: one launch in place of some thousands.

What is captured, at the start and never while calls run: for each bucket of rows and each reach of attention the step
as the model's own settings have it, with and without the speech-to-text model; and for each bucket one that can draw in
every way, as far as the context reaches, for calls that ask for what is rare. A step of another plan takes the
narrowest of these that does the same: what that does beyond changes nothing (bars for nobody, a penalty of 1, a tier in
which nobody draws, positions that a mask hides). A step that none of them does is run operation by operation.

Nothing has to be captured anew: weights, slots' state and buffers are allocated before the first capture and stay where
they are. Another engine captures its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import torch

from agent.moshi.frame import UNKNOWN, Frame, Known, Plan
from agent.moshi.sampling import EVERY_TIER

WARM_UPS = 2  # runs of a plan before its capture: libraries choose their ways, and allocate what they need, in these

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]  # runs a function once, for its operations to be done again

log = logging.getLogger(__name__)


class Graphs:
    """Runs a frame's plans, captured where they can be. One thread."""

    def __init__(self, frame: Frame, usual: tuple[tuple[int, ...], tuple[int, ...]], capture: Capture) -> None:
        """`usual`: the tiers in which text and sound are drawn as the model's own settings have it."""
        self._frame, self._usual, self._capture = frame, usual, capture
        self._replays: dict[Plan, Replay] = {}
        self.run_as_they_are = 0  # steps that were not captured

    def prepare(self, rows: Collection[int] | None = None) -> None:
        """Capture all plans, or those of these buckets; steps of the scratch slot alone. Raises RuntimeError where the
        device doesn't."""
        began = time.monotonic()
        try:
            self._prepare([plan for plan in self._plans() if rows is None or plan.rows in rows])
        except RuntimeError:
            self._replays.clear()  # none rather than some
            raise
        log.info("%d steps captured in %.1f s", len(self._replays), time.monotonic() - began)

    def _prepare(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            self._frame.idle(plan.rows)
            for _ in range(WARM_UPS):
                self._frame.run(plan, UNKNOWN)
            self._replays[plan] = self._capture(lambda plan=plan: self._frame.run(plan, UNKNOWN))  # type: ignore[misc]

    def run(self, plan: Plan, known: Known) -> None:
        """As Frame.run."""
        replay = next((self._replays[wide] for wide in self._as_captured(plan) if wide in self._replays), None)
        if replay is not None:
            replay()
            return
        self.run_as_they_are += 1
        self._frame.run(plan, known)

    def _plans(self) -> Iterator[Plan]:
        frame, (text, audio) = self._frame, self._usual
        for rows in frame.buffers:
            for transcribes in (False, True) if frame.transcriber else (False,):
                plan = Plan(rows=rows, reach=None, hears=True, speaks=frame.speaks, transcribes=transcribes,
                            text_tiers=text, audio_tiers=audio, barred=True, penalised=True)
                for reach in frame.reaches:
                    yield replace(plan, reach=reach)
                yield replace(plan, reach=frame.reaches[-1], text_tiers=EVERY_TIER, audio_tiers=EVERY_TIER)

    def _as_captured(self, plan: Plan) -> Iterator[Plan]:
        """Plans that do what this one does, the narrowest first."""
        text, audio = self._usual
        wide = replace(plan, speaks=self._frame.speaks, barred=True, penalised=True)
        if set(plan.text_tiers) <= set(text) and set(plan.audio_tiers) <= set(audio):
            yield replace(wide, text_tiers=text, audio_tiers=audio)
        yield replace(wide, reach=self._frame.reaches[-1], text_tiers=EVERY_TIER, audio_tiers=EVERY_TIER)


class CudaCapture:
    """Capture by CUDA graphs, which share one pool of memory: of what a step allocates in between nothing outlives it,
    since its results are in its buffers, and one step runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Replay:
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # other threads may go on with the device: they prepare what calls begin with
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
        return graph.replay
