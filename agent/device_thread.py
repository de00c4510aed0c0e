"""One engine's thread: collect the frames that are due, step, deliver. The only place where an engine is stepped."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from agent.admission import Load
from agent.engine import Engine, Sampling, StepInputs, StepOutputs
from agent.monologue import FREE, Command, Force, Monologue, Outcome
from agent.scheduler import Frame, Scheduler
from agent.sound import from_s16le, to_s16le
from calls.priority import STEP, before_others
from calls.wire import FORCED, MUTED, SamplingSettings, Step

BEHIND = 0.6  # of a frame's length that a frame may wait before the caller's words are left out of its step
LOOK_S = 0.002  # between two looks at whether a step is over
MAX_COMMANDS = 32  # that wait for a call's next frame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stepped:
    """What one step did for one call."""

    step: Step
    pcm: bytes  # s16le, the agent's frame
    outcomes: tuple[Outcome, ...] = ()  # of commands


@dataclass(frozen=True)
class Heard:
    """The caller's frame; with `given`, what another worker's step made of it: this one does the same."""

    pcm: bytes  # s16le
    given: Step | None = None


@dataclass(frozen=True)
class Resampling:
    """A command that changes how a call's tokens are drawn."""

    id: str
    sampling: SamplingSettings


@dataclass(eq=False)
class Seat:
    """A call's hold on a slot, from join to leave."""

    slot: int
    sampling: SamplingSettings
    deliver: Callable[[Stepped], None]  # called on the device thread: translate and enqueue, no more
    us_to_boundary: int  # from the moment it joined
    monologue: Monologue | None = None  # None: the model has no text; stepped by the device thread alone
    fresh: bool = True  # its first step starts the slot anew
    commands: deque[Command | Resampling] = field(default_factory=deque)  # for the next frame


def now_us() -> int:
    return time.monotonic_ns() // 1000


class DeviceThread:
    """Steps `engine` for as many seats as it has slots; join, leave and frame may be called from any thread."""

    def __init__(self, engine: Engine, failed: Callable[[BaseException], None]) -> None:
        self.engine = engine
        self._failed = failed
        self._free = set(range(engine.slots))
        self._seats: dict[int, Seat] = {}
        period_us = engine.info.frame_samples * 1_000_000 // engine.info.sample_rate
        self._scheduler: Scheduler[Heard] = Scheduler(period_us)
        self.load = Load()
        self._behind_us = int(BEHIND * period_us)
        self._changed = threading.Condition()  # guards all of the above
        self._stopping = False
        self._stepping: set[int] = set()  # slots of the step that runs
        self._step_began_us: int | None = None
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

    @property
    def in_step_s(self) -> float:
        """For how long the step that runs has run by now; 0 between two."""
        began_us = self._step_began_us
        return 0.0 if began_us is None else (now_us() - began_us) / 1e6

    def join(self, sampling: SamplingSettings, deliver: Callable[[Stepped], None],
             monologue: Monologue | None = None) -> Seat | None:
        """A seat on a free slot; None when all are taken."""
        with self._changed:
            if not self._free:
                return None
            slot = min(self._free)
            self._free.remove(slot)
            seat = self._seats[slot] = Seat(
                slot, sampling, deliver, self._scheduler.join(slot, now_us()), monologue)
            return seat

    def leave(self, seat: Seat) -> int:
        """Free the seat's slot, at once or as soon as its step is over; returns how many of its frames were dropped.
        Idempotent."""
        with self._changed:
            if self._seats.get(seat.slot) is not seat:
                return 0
            del self._seats[seat.slot]
            if seat.slot not in self._stepping:
                self._release(seat.slot)
            dropped = self._scheduler.leave(seat.slot)
            self._changed.notify()
            return dropped

    def pause(self, seat: Seat) -> None:
        """Returns when the seat isn't stepped any more, until `resume`; its frames wait. Not on the device thread.
        A step is waited for; one that hangs ends the worker."""
        with self._changed:
            self._scheduler.pause(seat.slot)
        while True:
            with self._changed:
                if seat.slot not in self._stepping:
                    return
            time.sleep(LOOK_S)

    def resume(self, seat: Seat) -> None:
        with self._changed:
            self._scheduler.pause(seat.slot, paused=False)
            self._changed.notify()

    def _release(self, slot: int) -> None:
        self.engine.release(slot)
        self._free.add(slot)

    def frame(self, seat: Seat, k: int, pcm: bytes, given: Step | None = None) -> int | None:
        """Queue frame k of the seat's call; returns the k of the frame that had to give way, if one had. With
        `given` the step takes the tokens and codes of that one."""
        with self._changed:
            if self._seats.get(seat.slot) is not seat:
                return None
            gone = self._scheduler.add(seat.slot, Frame(k, Heard(pcm, given), now_us()))
            self._changed.notify()
            return gone

    def command(self, seat: Seat, command: Command | Resampling) -> bool:
        """Have a command count from the seat's next frame on; False when too many wait for it."""
        with self._changed:
            if len(seat.commands) == MAX_COMMANDS:
                return False
            seat.commands.append(command)
            return True

    def _run(self) -> None:
        before_others(STEP)
        try:
            while (collected := self._collect()) is not None:
                self._step(collected)
                self._stepped()
        except Exception as error:  # the thread's edge: a step that fails ends the worker, loudly
            log.exception("the engine %s failed", self.engine.info.name)
            with self._changed:
                self._stepping = set()  # whoever waits for the step's end, waits for nothing more
            self._failed(error)

    def _collect(self) -> list[_Due] | None:
        """Wait for frames that are due, and take the commands for them; None when the thread should end."""
        with self._changed:
            while not self._stopping:
                slots = self._scheduler.due(now_us())
                if slots:
                    due = [_Due(self._seats[slot], frame, list(self._seats[slot].commands))
                           for slot, frame in zip(slots, self._scheduler.take(slots), strict=True)]
                    for one in due:
                        one.seat.commands.clear()
                    self._stepping = {one.seat.slot for one in due}
                    return due
                wait_us = self._scheduler.wait_us(now_us())
                self._changed.wait(None if wait_us is None else wait_us / 1e6)
            return None

    def _stepped(self) -> None:
        """Those that left meanwhile free their slots now."""
        with self._changed:
            left, self._stepping = self._stepping - self._seats.keys(), set()
            for slot in left:
                self._release(slot)

    def _step(self, due: list[_Due]) -> None:
        """One step of the seats that are due, each told what its monologue wants."""
        began_us = self._step_began_us = now_us()
        for one in due:
            one.take()
        # What callers say never costs the agent a frame: where one waits too long, this step isn't transcribed.
        behind = any(began_us - one.frame.arrived_us > self._behind_us for one in due)
        outputs = self.engine.step(_inputs(self.engine, due), transcribe=not behind)
        for one, text in zip(due, outputs.text, strict=True):
            one.took(int(text))
        ended_us, self._step_began_us = now_us(), None
        self.load.stepped(ended_us, ended_us - began_us)
        _deliver(due, outputs, began_us, ended_us - began_us)


@dataclass
class _Due:
    """A seat that steps now: its frame, and what it is told."""

    seat: Seat
    frame: Frame[Heard]
    commands: list[Command | Resampling]
    force: Force = FREE
    outcomes: list[Outcome] = field(default_factory=list)

    def take(self) -> None:
        """Before the step: commands in their order, then what they make of this frame."""
        seat, k = self.seat, self.frame.k
        for command in self.commands:
            if isinstance(command, Resampling):
                changed = {name: value for name, value in vars(command.sampling).items() if value is not None}
                seat.sampling = replace(seat.sampling, **changed)
                self.outcomes.append(Outcome(command.id, "set", k, k))
            else:
                assert seat.monologue is not None, "a model without text takes no commands"
                self.outcomes += seat.monologue.take(command, k)
        if seat.monologue is not None and self.given is None:
            self.force = seat.monologue.force(k)

    @property
    def given(self) -> Step | None:
        return self.frame.payload.given

    def took(self, text: int) -> None:
        """After the step, which took this token."""
        if self.seat.monologue is not None and self.given is None:
            self.outcomes += self.seat.monologue.took(self.frame.k, text)


def _inputs(engine: Engine, due: list[_Due]) -> StepInputs:
    seats = [one.seat for one in due]
    fresh = [seat.fresh for seat in seats]
    for seat in seats:
        seat.fresh = False
    inputs = StepInputs.free(
        [seat.slot for seat in seats], fresh, np.stack([from_s16le(one.frame.payload.pcm) for one in due]), engine.info,
        _sampling(engine.default_sampling(len(seats)), seats))
    for row, one in enumerate(due):
        inputs.text_mode[row], inputs.forced_text[row] = one.force.text_mode, one.force.forced_text
        if one.force.muted:
            inputs.forced_audio[row] = engine.silence
        if one.force.codes:
            inputs.forced_audio[row, :len(one.force.codes)] = one.force.codes
        if one.given is not None:
            inputs.forced_text[row] = one.given.text
            inputs.forced_audio[row] = [-1 if code is None else code for code in one.given.agent_codes]
    return inputs


def _sampling(rows: Sampling, seats: list[Seat]) -> Sampling:
    """The model's own settings, and over them what each call asked for."""
    for row, seat in enumerate(seats):
        for name, value in vars(seat.sampling).items():
            if value is not None:
                getattr(rows, name)[row] = value
    return rows


def _deliver(due: list[_Due], outputs: StepOutputs, began_us: int, in_step_us: int) -> None:
    for row, one in enumerate(due):
        seat, frame, force = one.seat, one.frame, one.force
        step = Step(
            k=frame.k,
            text=int(outputs.text[row]),
            sampled_text=int(outputs.sampled_text[row]),
            mode=force.text_mode | FORCED * (force.forced_text == int(outputs.text[row])) | MUTED * force.muted,
            agent_codes=_codes(outputs.agent_codes[row]),
            caller_codes=_codes(outputs.caller_codes[row]),
            caller_text=int(outputs.caller_text[row]),
            pauses=tuple(float(head[0]) for head in outputs.pauses[row]),
            text_entropy=float(outputs.text_entropy[row]),
            audio_entropy=float(outputs.audio_entropy[row]),
            codebook_spread=float(outputs.codebook_spread[row]),
            us_waited=max(0, began_us - frame.arrived_us),
            us_in_step=in_step_us,
        )
        pcm = to_s16le(outputs.pcm[row]) if force.pcm is None else force.pcm
        seat.deliver(Stepped(step, pcm, tuple(one.outcomes)))


def _codes(row: npt.NDArray[np.int64]) -> tuple[int | None, ...]:
    return tuple(int(code) if code >= 0 else None for code in row)
