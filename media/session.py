"""One call, whatever carries it: bridge <-> 80 ms frames <-> worker, its lease, its events, its token log.

    transport's clock  ──received──▶ Crossing ──frames──▶ _pump ──▶ WorkerLink ──▶ worker
    (20 ms ticks)      ◀──wanted───  Playout  ◀─────────  _listen ◀─ WorkerLink ◀─┘

A transport makes a Session when a call comes in, and then, in one task:

    await session.prepare()            lease and worker, while it rings; raises a Refusal
    crossing = session.answered(codec) the call's clock begins with the transport's next tick
    await session.over()               until the other side hung up, or we end and all that was said is heard
    await session.close(sip_status)    always, on every path: emits the one CallEnded, frees the slot
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from calls import wire
from calls.causes import q850
from calls.controls import Control, Result
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallReceived,
    EndReason,
    Envelope,
    Event,
    Speaker,
    UtteranceSpoken,
)
from calls.routing import Refusal
from calls.rules import Rule
from calls.state import IllegalTransition, Signal, State, advance
from media.audio import CHUNK_S
from media.call_controls import CallControls, Reply
from media.crossing import Crossing
from media.latency import Latency
from media.line import Line, LineWork
from media.moves import LEASE_LOST, Moves
from media.talk import Talk
from media.tape import Keeps, Tape
from media.taps import Taps
from media.waiting import Waiting
from media.worker_hold import Leases, WorkerHold
from media.worker_link import WorkerLink, WorkerLost

log = logging.getLogger(__name__)

DRAIN_S = 2.0  # at an end from our side: for the agent's last words to be heard
LAST_FRAMES_S = 0.4  # of it: for the frames that are still with the worker
LAST_WORDS_S = 1.0  # for the worker's last word at any end
LAST_RENEWAL_S = 5.0  # for one that runs when the call ends
MEASURED_EVERY_S = 10.0  # between two events that tell what is measured
CANT_MOVE = (LEASE_LOST, "protocol")  # another bridge has the call, or we are at fault
ON_THEIR_WAY = 3  # frames that the worker may owe us at the end without anything being wrong

Side = Literal["local", "remote"]


class Overloaded(Refusal):
    """This bridge takes no new calls."""

    reason: ClassVar[EndReason] = EndReason.OVERLOADED


class Events(Protocol):
    """What a session needs of calls.live.EventWriter."""

    @property
    def full(self) -> bool: ...
    def emit(self, call: str, fence: int, event: Event, at: datetime | None = None) -> Envelope: ...


@dataclass(frozen=True)
class SessionSettings:
    lease_s: float
    data_dir: Path  # the token log goes into its folder `calls`
    kept_steps: int = 6000  # of the token log: the longest context, and as many before it (agent/worker.py)
    records: bool = False  # from the answer on
    move_within_s: float = 15.0  # for another worker, where one is lost
    rules: tuple[Rule, ...] = ()  # what the agent does without an operator
    notice: str = ""  # said at the answer of a call that is recorded; before it has been, nothing is
    sampling: wire.SamplingSettings = field(default_factory=wire.SamplingSettings)  # at first
    persona: wire.Persona = field(default_factory=wire.Persona)


@dataclass(frozen=True)
class _Why:
    reason: EndReason
    side: Side
    detail: str


class Session:
    """One call from its first ring to its row. All methods are called on the loop."""

    def __init__(
        self, call: str, received: CallReceived, model: str, *, leases: Leases, events: Events,
        settings: SessionSettings, recordings: Keeps | None = None,
    ) -> None:
        """A call has come in: says so as its first event. `recordings` takes the recording at the end."""
        self.call = call
        self.model = model
        self.state = State.RINGING
        self._events = events
        self._settings = settings
        self._tape = Tape(recordings if settings.records else None)
        self._latency = Latency()
        self._measured_at = math.inf  # the last time; none before the answer
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._why: _Why | None = None
        self._ended_at: datetime | None = None
        self.on_text: Callable[[wire.Text], None] = lambda _: None  # each token of the agent's, as the worker tells it
        self._fence = 0  # of our events: the lease's, once a worker is ready
        self._worker = WorkerHold(call, model, leases, settings.lease_s, settings.move_within_s, self._over,
                                  settings.sampling, settings.persona)
        self._worker_lost = False
        self._listener: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._beside: list[asyncio.Task[None]] = []  # what runs beside the listener
        self._renewing: asyncio.Task[None] | None = None
        self._crossing: Crossing | None = None
        self._codec = ""
        self._answered_at: datetime | None = None
        self._frames_waiting = asyncio.Event()
        self.talk: Talk | None = None  # once a worker is ready
        self._closing: asyncio.Task[None] | None = None
        self._controls = CallControls(
            send=self._send_control, emit=self._emit,
            now=self._frame,
            own={"hang_up": self._hang_up, "pause_recording": lambda _: _unless(self.pause_recording()),
                 "resume_recording": lambda _: _unless(self.resume_recording()),
                 "take_over": lambda control: self.taps.take_over(control),
                 "hand_back": lambda control: self.taps.hand_back(control)})
        self.taps = Taps(emit=self._emit, agent=self._tell_agent,
                         now=self._frame,
                         voice=lambda voice: self._crossing.speak_for_agent(voice) if self._crossing else None)
        self.line = Line(settings.rules, emit=self._emit, give=self.control,
                         now=self._frame,
                         spawn=lambda work: self._beside.append(self._spawn(work)))
        self._moves = Moves(call, self._worker, self._controls, self._latency, emit=self._emit, over=self._over,
                            talking=lambda: self.state is State.TALKING, at_fence=self._now_under)
        self._emit(received)

    # what the transport calls

    async def prepare(self, waiting: Waiting | None = None) -> bool:
        """Get a slot and its worker; False when the call has ended meanwhile. A Refusal ends it too. Where all slots
        are taken, it may be `waiting` for one."""
        if self._events.full:
            self.refuse(Overloaded("too many events wait to be saved"))
            raise Overloaded("too many events wait to be saved")
        self._preparing = asyncio.create_task(self._get_worker(waiting))
        gone = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((self._preparing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if self.state is State.ENDED:
            return False
        try:
            await self._preparing
        except Refusal as refusal:
            self.refuse(refusal)
            raise
        return True

    def refuse(self, refusal: Refusal) -> None:
        """The call isn't taken, for this reason."""
        self._signal(Signal.REFUSED, _Why(refusal.reason, "local", str(refusal)))

    def answered(self, codec: str) -> Crossing:
        """The caller is answered: what the transport's clock thread talks to from now on."""
        link = self._worker.link
        assert link is not None
        self.state = advance(self.state, Signal.ANSWERED)
        self._codec = codec
        self._tape.record(self._settings.data_dir, self.call, self._fence)
        self._crossing = Crossing(self._loop, self._frames_waiting.set, link.boundary_at)
        self._beside.append(self._spawn(self._pump(self._crossing)))
        return self._crossing

    def hung_up(self, reason: EndReason = EndReason.CALLER_HUNG_UP, detail: str = "") -> None:
        """The other side has ended the call, or has cancelled it."""
        self._signal(Signal.HANGUP, _Why(reason, "remote", detail))

    def end(self, reason: EndReason, detail: str = "") -> None:
        """This side ends the call; `over` returns when what the agent has said has been heard."""
        if self.state in (State.DRAINING, State.ENDED):
            return
        self._signal(Signal.END, _Why(reason, "local", detail))

    async def control(self, control: Control, reply: Reply) -> None:
        """Carry out what somebody wants of the call; `reply` is called once, when it is known what became of it."""
        await self._controls.take(control, reply, talking=self.state is State.TALKING,
                                  barred=self.taps.bars(control.action))

    def telephone(self, transport: LineWork) -> None:
        """The call comes by a telephone line, on which `transport` carries out what is wanted."""
        self._controls.transport = transport
        self.line.listen_for_keys()

    async def carried_out(self, control: Control, within_s: float) -> Result:
        """A control of the transport's own, and what became of it."""
        came: asyncio.Future[Result] = self._loop.create_future()
        await self.control(control, lambda result: None if came.done() else came.set_result(result))
        try:
            async with asyncio.timeout(within_s):
                return await came
        except TimeoutError:
            return Result(control.id, "unknown", 0, 0, "nothing became of it")

    def pause_recording(self) -> bool:
        """Both sides are silent in the recording, until `resume_recording`; False where there is none."""
        self._take_tape()
        return self._tape.pause()

    def resume_recording(self) -> bool:
        self._take_tape()
        return self._tape.resume()

    @property
    def has_ended(self) -> bool:
        return self.state is State.ENDED

    @property
    def end_reason(self) -> EndReason | None:
        """Why it ends or has ended; None while nobody wants it to."""
        return self._why.reason if self._why is not None else None

    async def over(self) -> None:
        """Returns when the call has ended and the transport may hang up, if the other side hasn't."""
        await self._over.wait()

    async def close(self, sip_status: int | None = None, cause: int | None = None) -> None:
        """Free what the call holds and emit CallEnded, once; `sip_status` is the final one of either side, `cause` what
        the other side gave as Q.850's."""
        if self._closing is None:
            if self.state is not State.ENDED:
                self._why = self._why or _Why(EndReason.FAILED, "local", "the bridge gave the call up")
                self._enter(State.ENDED)
            self._closing = asyncio.create_task(self._close(sip_status, cause))
        await asyncio.shield(self._closing)

    # getting ready

    async def _get_worker(self, waiting: Waiting | None) -> None:
        if waiting is None:
            await self._worker.get()
        else:
            await waiting.until_had(self.call, self.model, self._worker.get, self._over)
        link, lease = self._worker.link, self._worker.lease
        if link is None or lease is None or self.state is State.ENDED:
            return
        self.state = advance(self.state, Signal.WORKER_READY)
        self._fence = lease.fence
        self.talk = Talk(link.ready, self._settings.kept_steps, self._latency)
        self._listener = self._spawn(self._listen())
        self._renewing = self._spawn(self._worker.keep(self._lease_lost))
        self._emit(CallLeased(lease.model, lease.worker, lease.epoch))

    # while it talks

    async def _pump(self, crossing: Crossing) -> None:
        """The caller's frames to the worker; with each, what has been heard by now becomes events."""
        assert self.talk is not None
        while True:
            await self._frames_waiting.wait()
            self._frames_waiting.clear()
            self._say_answered(crossing)
            for frame in crossing.take():
                self.talk.conceal(frame.silent_chunks if frame.k else 0)  # those before the answer are none
                if self.state is State.TALKING:
                    await self._moves.send(frame)
            self._emit_all(self.talk.advance(crossing))
            self._take_tape()
            turns = self._tape.turns
            if not self.taps.talker:  # who decides meanwhile what is done
                self.line.advance(crossing.ticks * CHUNK_S, turns.quiet_s, caller_spoke=turns.caller_spoke)
            self._say_measured()

    def _lease_lost(self) -> None:
        if self._worker.link is not None and self.talk is not None:
            self._moves.leave(self._worker.link, LEASE_LOST, self.talk.token_log)

    async def _send_control(self, control: wire.Control) -> bool:
        link = self._worker.link
        return link is not None and await link.send_control(control)

    def _frame(self) -> int:
        """Of the call's clock, now."""
        return self._crossing.frames_made if self._crossing is not None else 0

    def _tell_agent(self, control: Control) -> None:
        """A control of ours that nobody waits for, past what is barred."""
        self._beside.append(self._spawn(
            self._controls.take(control, lambda _: None, talking=self.state is State.TALKING)))

    def _hang_up(self, control: Control) -> str:
        self.end(EndReason.AGENT_HUNG_UP if control.of_rule else EndReason.OPERATOR_HUNG_UP, control.by)
        return ""

    def _take_tape(self) -> None:
        """Both sides' sound since the last time."""
        if self._crossing is not None:
            pieces = self._crossing.take_tape()
            self._tape.take(pieces)
            self.taps.hear(pieces)
            self.line.hear(pieces)

    def _say_measured(self, *, now: bool = False) -> None:
        if now or self._loop.time() - self._measured_at >= MEASURED_EVERY_S:
            self._measured_at = self._loop.time()
            assert self.talk is not None
            self._emit(CallMeasured((*self.talk.measures(), *self._tape.turns.measures())))
            self.taps.tell()

    def _say_answered(self, crossing: Crossing) -> None:
        if self._answered_at is None and crossing.began is not None:
            self._answered_at = datetime.fromtimestamp(crossing.began.unix_s, UTC)
            self._emit(CallAnswered(self._codec), self._answered_at)
            notice = self._settings.notice if self._settings.notice and self.pause_recording() else ""
            self.line.answered(self.call, notice, self.resume_recording)
            self._measured_at = self._loop.time()

    async def _listen(self) -> None:
        """What the worker says, until the call is over: where the worker is lost, by another one."""
        while (link := self._worker.link) is not None:
            try:
                await self._take_from(link)
                return
            except WorkerLost as lost:
                if self._worker.link is not link:  # it was left for another one
                    continue
                log.warning("call %s: lost its worker: %s: %s", self.call, lost.code, lost)
                if self.state is State.TALKING and lost.code not in CANT_MOVE and await self._move(lost):
                    continue
                self._worker_lost = True
                if self.state is not State.ENDED:
                    why = _Why(EndReason.WORKER_LOST, "local", f"{lost.code}: {lost}")
                    self._signal(Signal.WORKER_LOST, why)
                return

    async def _take_from(self, link: WorkerLink) -> None:
        """Its frames to the playout, its controls' outcomes, and what is kept of the talk. Raises WorkerLost."""
        assert self.talk is not None
        async for message in link.messages():
            self._emit_all(self.talk.came(message, self._loop.time()))
            match message:
                case wire.Audio(k, pcm):
                    if self._crossing is not None:
                        self._crossing.push(k, pcm)
                case wire.Outcome():
                    self._controls.came(message)
                case wire.Text():
                    self.on_text(message)
                case wire.Step():
                    self.line.stepped(message)
                case wire.Leave(reason):
                    self._moves.leave(link, reason.name.lower(), self.talk.token_log)
            self._moves.came(message)

    async def _move(self, lost: WorkerLost) -> bool:
        """Go on at another worker, with what the caller has heard by now; False where there is none."""
        assert self.talk is not None
        if self._crossing is not None:
            self._emit_all(self.talk.advance(self._crossing))
        return await self._moves.lost(lost, self.talk.token_log)

    # its end

    def _signal(self, signal: Signal, why: _Why | None = None) -> None:
        """Take a signal that leads towards the end, where it has a meaning; the first reason stays."""
        try:
            state = advance(self.state, signal)
        except IllegalTransition:
            return
        self._why = self._why or why
        self._enter(state)

    def _enter(self, state: State) -> None:
        before, self.state = self.state, state
        if state is State.ENDED:
            self._ended_at = datetime.now(UTC)
            self._over.set()
        elif state is State.DRAINING and before is State.TALKING:
            self._beside.append(self._spawn(self._drain()))

    async def _drain(self) -> None:
        """Play what the agent has said, at most DRAIN_S long."""
        crossing = self._crossing
        assert crossing is not None
        ends_at = self._loop.time() + DRAIN_S
        moves = self._moves
        await _wait_until(lambda: self._worker_lost or moves.last_back_k >= moves.last_sent_k, LAST_FRAMES_S)
        crossing.finish()
        await _wait_until(lambda: crossing.drained, ends_at - self._loop.time())
        self._signal(Signal.DRAINED)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._check)
        return task

    def _check(self, task: asyncio.Task[None]) -> None:
        """A task's edge: a fault of ours ends this call, not the others."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call %s failed", self.call, exc_info=error)
            self.end(EndReason.FAILED, f"{type(error).__name__}: {error}")

    async def _close(self, sip_status: int | None, cause: int | None) -> None:
        crossing = self._crossing
        if crossing is not None:
            crossing.finish()
        await self._leave_worker()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        if crossing is not None:
            assert self.talk is not None
            self._say_answered(crossing)
            self._emit_all(self.talk.advance(crossing))
            crossing.close()
            self._take_tape()
        if self.talk is not None:
            self._emit_all(self.talk.finish())
        self.taps.end()
        self._controls.end()
        if self._answered_at is not None:
            self._say_measured(now=True)
        self._emit(self._ended(sip_status, cause), self._ended_at)
        if self._renewing is not None:
            await asyncio.wait((self._renewing,), timeout=LAST_RENEWAL_S)
        await self._worker.release()
        if self.talk is not None and self._answered_at is not None:
            await self.talk.write(self._settings.data_dir, self.call, self.model, self._answered_at.isoformat())
        await self._tape.keep()

    async def _leave_worker(self) -> None:
        await self._moves.stop()
        if self._preparing is not None:
            self._worker.give_up()
            await asyncio.gather(self._preparing, return_exceptions=True)
        link = self._worker.link
        if self._listener is not None and not self._worker_lost:
            if link is not None:
                await link.finish()
            await asyncio.wait((self._listener,), timeout=LAST_WORDS_S)
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        if (link := self._worker.link) is not None:
            await link.close()

    def _ended(self, sip_status: int | None, cause: int | None) -> CallEnded:
        assert self._why is not None
        crossing, why = self._crossing, self._why
        cause = cause or q850(why.reason, sip_status)
        if crossing is None:
            return CallEnded(why.reason, why.side, sip_status, why.detail, 0, 0, 0, 0, cause)
        owed = max(0, self._moves.last_sent_k - self._moves.last_back_k - ON_THEIR_WAY)
        counts = crossing.counts
        return CallEnded(
            why.reason, why.side, sip_status, why.detail, frames=crossing.frames_made,
            frames_dropped=crossing.dropped + self._worker.frames_dropped,
            frames_missing=counts.missing + owed, underruns=counts.underruns, q850=cause)

    def _now_under(self, fence: int) -> None:
        self._fence = fence

    def _emit(self, event: Event, at: datetime | None = None) -> None:
        self._events.emit(self.call, self._fence, event, at)

    def _emit_all(self, spoken: list[UtteranceSpoken]) -> None:
        for utterance in spoken:
            self._emit(utterance)
            if utterance.speaker is Speaker.CALLER and not self.taps.talker:
                self.line.heard(utterance.first_k, utterance.text)


def _unless(recorded: bool) -> str:
    return "" if recorded else "the call isn't recorded"


async def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Returns when `condition` holds, looked at every 20 ms, or after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition() and loop.time() < deadline:  # noqa: ASYNC110 - it changes on the clock's thread
        await asyncio.sleep(CHUNK_S)
