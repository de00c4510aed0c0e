"""One engine's thread: collect the frames that are due, step, deliver. The only place where an engine is stepped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.engine import Engine, Sampling, StepInputs, StepOutputs, TextMode
from agent.scheduler import Frame, Scheduler
from calls.priority import STEP, before_others
from calls.wire import SamplingSettings, Step

log = logging.getLogger(__name__)

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stepped:
    """What one step did for one call."""

    step: Step
    pcm: bytes  # s16le, the agent's frame


@dataclass(eq=False)
class Seat:
    """A call's hold on a slot, from join to leave."""

    slot: int
    sampling: SamplingSettings
    deliver: Callable[[Stepped], None]  # called on the device thread: translate and enqueue, no more
    us_to_boundary: int  # from the moment it joined
    fresh: bool = True  # its first step starts the slot anew


def now_us() -> int:
    return time.monotonic_ns() // 1000


def to_s16le(pcm: Samples) -> bytes:
    """Float samples, clipped to [-1, 1), as 16-bit little-endian; the inverse of `from_s16le`, bit for bit."""
    return np.rint(pcm * 32768).clip(-32768, 32767).astype("<i2").tobytes()


def from_s16le(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2").astype(np.float32) * np.float32(1 / 32768)


class DeviceThread:
    """Steps `engine` for as many seats as it has slots; join, leave and frame may be called from any thread."""

    def __init__(self, engine: Engine, failed: Callable[[BaseException], None]) -> None:
        self.engine = engine
        self._failed = failed
        self._free = set(range(engine.slots))
        self._seats: dict[int, Seat] = {}
        period_us = engine.info.frame_samples * 1_000_000 // engine.info.sample_rate
        self._scheduler: Scheduler[bytes] = Scheduler(period_us)
        self._changed = threading.Condition()  # guards all of the above
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"device-{engine.info.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the step that runs; frames that wait are dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def used(self) -> int:
        with self._changed:
            return len(self._seats)

    def join(self, sampling: SamplingSettings, deliver: Callable[[Stepped], None]) -> Seat | None:
        """A seat on a free slot; None when all are taken."""
        with self._changed:
            if not self._free:
                return None
            slot = min(self._free)
            self._free.remove(slot)
            seat = self._seats[slot] = Seat(slot, sampling, deliver, self._scheduler.join(slot, now_us()))
            return seat

    def leave(self, seat: Seat) -> int:
        """Free the seat's slot; returns how many of its frames were dropped. Idempotent."""
        with self._changed:
            if self._seats.get(seat.slot) is not seat:
                return 0
            del self._seats[seat.slot]
            self._free.add(seat.slot)
            dropped = self._scheduler.leave(seat.slot)
            self._changed.notify()
            return dropped

    def frame(self, seat: Seat, k: int, pcm: bytes) -> int | None:
        """Queue frame k of the seat's call; returns the k of the frame that had to give way, if one had."""
        with self._changed:
            if self._seats.get(seat.slot) is not seat:
                return None
            gone = self._scheduler.add(seat.slot, Frame(k, pcm, now_us()))
            self._changed.notify()
            return gone

    def _run(self) -> None:
        before_others(STEP)
        try:
            while (collected := self._collect()) is not None:
                seats, frames = collected
                began_us = now_us()
                outputs = self.engine.step(_inputs(self.engine, seats, frames))
                _deliver(seats, frames, outputs, began_us, now_us() - began_us)
        except Exception as error:  # the thread's edge: a step that fails ends the worker, loudly
            log.exception("the engine %s failed", self.engine.info.name)
            self._failed(error)

    def _collect(self) -> tuple[list[Seat], list[Frame[bytes]]] | None:
        """Wait for frames that are due; None when the thread should end."""
        with self._changed:
            while not self._stopping:
                slots = self._scheduler.due(now_us())
                if slots:
                    return [self._seats[slot] for slot in slots], self._scheduler.take(slots)
                wait_us = self._scheduler.wait_us(now_us())
                self._changed.wait(None if wait_us is None else wait_us / 1e6)
            return None


def _inputs(engine: Engine, seats: list[Seat], frames: list[Frame[bytes]]) -> StepInputs:
    fresh = [seat.fresh for seat in seats]
    for seat in seats:
        seat.fresh = False
    return StepInputs.free(
        [seat.slot for seat in seats], fresh, np.stack([from_s16le(frame.pcm) for frame in frames]), engine.info,
        _sampling(engine.default_sampling(len(seats)), seats))


def _sampling(rows: Sampling, seats: list[Seat]) -> Sampling:
    """The model's own settings, and over them what each call asked for."""
    for row, seat in enumerate(seats):
        for name, value in vars(seat.sampling).items():
            if value is not None:
                getattr(rows, name)[row] = value
    return rows


def _deliver(seats: list[Seat], frames: list[Frame[bytes]], outputs: StepOutputs, began_us: int,
             in_step_us: int) -> None:
    for row, (seat, frame) in enumerate(zip(seats, frames, strict=True)):
        step = Step(
            k=frame.k,
            text=int(outputs.text[row]),
            sampled_text=int(outputs.sampled_text[row]),
            mode=int(TextMode.FREE),
            agent_codes=_codes(outputs.agent_codes[row]),
            caller_codes=_codes(outputs.caller_codes[row]),
            caller_text=int(outputs.caller_text[row]),
            pauses=tuple(float(head[0]) for head in outputs.pauses[row]),
            text_entropy=float(outputs.text_entropy[row]),
            codebook_spread=float(outputs.codebook_spread[row]),
            us_waited=max(0, began_us - frame.arrived_us),
            us_in_step=in_step_us,
        )
        seat.deliver(Stepped(step, to_s16le(outputs.pcm[row])))


def _codes(row: npt.NDArray[np.int64]) -> tuple[int | None, ...]:
    return tuple(int(code) if code >= 0 else None for code in row)
