"""How a call gets to another worker, and what it brings along: its steps, the caller's last sound, its controls.

    lost:   a worker is gone. Another one rebuilds the call from what the caller has heard; until then there is a pause.
    left:   a worker wants to be rid of the call (it drains, it doesn't keep up), or Redis was away and has given the
            slot away. It has the call as long as it takes. Another one rebuilds it meanwhile and follows, doing in each
            frame what the first one did; when it has caught up, the next frame is its own.

        frames ──▶ worker ──steps──▶ playout        frames ──held──┐          frames ──▶ other ──▶ playout
                      └──Follow──▶ other                     worker ──last step──▶ other
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from calls import wire
from calls.events import CallLeased, CallMoved
from calls.routing import Refusal
from media.audio import levels
from media.call_controls import CallControls
from media.framing import Frame
from media.latency import Latency
from media.playout import QUIET_RMS
from media.token_log import TokenLog
from media.worker_hold import WorkerHold, happens
from media.worker_link import Moved, WorkerLink, WorkerLost

log = logging.getLogger(__name__)

WARM_UP_FRAMES = 50  # of the caller's sound, after which Mimi's codes are the same again (docs/decisions/moving.md)
FRAMES_KEPT = WARM_UP_FRAMES + 150  # and of what is said while a call moves
FOLLOW_WITHIN_S = 10.0  # for another worker to rebuild the call and to catch up; FRAMES_KEPT reach further
HELD_S = 0.4  # for which frames are held back at most, for the last steps of the worker that is left
SPEAKING_FRAMES = 12  # after a word's last piece, within which the agent is in the middle of something
LEASE_LOST = "lease_lost"  # why a call leaves whose slot Redis has given away
LEAVE_PAUSE_S = (0.2, 2.0)  # first and longest between two tries to find another worker


def goes_on_speaking(steps: Sequence[wire.Step], heard: Iterable[tuple[int, bytes]]) -> bool:
    """The agent was in the middle of what it says, and nobody has said anything since: it shall go on there, in the
    middle of a word too, as if the pause hadn't been. To a silence that it remembers it would make something else of
    its sentence: what it had the pieces of already is never said, or nothing more is."""
    if all(step.text == wire.PAD for step in steps[-SPEAKING_FRAMES:]):
        return False
    since = b"".join(pcm for k, pcm in heard if k > steps[-1].k)
    return max(levels(since), default=0.0) < QUIET_RMS


class Moves:
    """One call's frames on their way to its worker, whichever that is. Called on the loop."""

    def __init__(self, call: str, worker: WorkerHold, controls: CallControls, latency: Latency, *,
                 talking: Callable[[], bool], over: asyncio.Event,
                 emit: Callable[[CallLeased | CallMoved], None], at_fence: Callable[[int], None]) -> None:
        """`at_fence` is told the fence under which events happen from now on, before those of the move are emitted."""
        self.last_sent_k = self.last_back_k = self._last_step_k = -1
        self._call, self._worker, self._controls, self._latency = call, worker, controls, latency
        self._talking, self._over, self._emit, self._at_fence = talking, over, emit, at_fence
        self._loop = asyncio.get_running_loop()
        self._heard: deque[tuple[int, bytes]] = deque(maxlen=FRAMES_KEPT)  # the caller's last frames
        self._holding = False  # frames back, until another worker has the call
        self._lessons: deque[wire.Step] | None = None  # for one that follows
        self._news = asyncio.Event()  # a lesson, or a control that is done
        self._leaving: asyncio.Task[None] | None = None

    async def send(self, frame: Frame) -> None:
        """The caller's next frame to the worker; while there is none it is kept, as what the call brings along."""
        self._heard.append((frame.k, frame.pcm))
        if self._worker.link is None:
            return
        self._latency.received(frame.k, frame.received_at)
        if not self._holding:
            await self._send(frame.k, frame.pcm)

    async def _send(self, k: int, pcm: bytes) -> None:
        link = self._worker.link
        if link is not None:
            link.send_frame(k, pcm)
            self.last_sent_k = k
            await asyncio.sleep(0)  # lets the link take it, so that the next one doesn't replace it
            self._latency.sent(k, self._loop.time())

    def came(self, message: object) -> None:
        """Something of the worker's that has been taken in."""
        if isinstance(message, wire.Audio):
            self.last_back_k = max(message.k, self.last_back_k)
        elif isinstance(message, wire.Step):
            self._worker.works()
            self._last_step_k = message.k
            if self._lessons is not None:
                self._lessons.append(message)
        self._news.set()

    # a worker that is gone

    async def lost(self, lost: WorkerLost, token_log: TokenLog) -> bool:
        """Go on at another worker with what the caller has heard by now; False where there is none."""
        began, before = self._loop.time(), self._worker.worker
        await self.stop()
        token_log.forget_unheard()
        steps = token_log.steps()
        moved = await self._worker.move(
            lambda: self._brought(token_log, steps, missed=not goes_on_speaking(steps, self._heard)), lost.code)
        if not moved or not self._talking():
            return False
        self.last_back_k = self._last_step_k = self.last_sent_k
        await self._arrived(before, lost.code, len(steps), self._loop.time() - began)
        return True

    async def stop(self) -> None:
        """Nobody follows any more."""
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)

    def _brought(self, token_log: TokenLog, steps: tuple[wire.Step, ...], *, missed: bool) -> Moved:
        last_k = steps[-1].k if steps else -1
        return Moved(token_log.layout, steps, tuple(
            (k, pcm) for k, pcm in self._heard if k > max(0, last_k) - WARM_UP_FRAMES and (missed or k <= last_k)),
            token_log.anew)

    async def _arrived(self, before: str, why: str, steps: int, took_s: float) -> None:
        lease = self._worker.lease
        assert lease is not None
        log.info("call %s goes on at worker %s after %.2f s", self._call, lease.worker, took_s)
        self._at_fence(lease.fence)
        self._emit(CallLeased(lease.model, lease.worker, lease.epoch))
        self._emit(CallMoved(before, lease.worker, why, steps, round(took_s, 3), self.last_sent_k))
        await self._controls.moved()

    # a worker that is left

    def leave(self, link: WorkerLink, why: str, token_log: TokenLog) -> None:
        """The worker of `link` wants to be rid of the call, or its slot is somebody else's now: looks for another one
        from now on, until the call is there or over, or until the first one is lost."""
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self._leave(link, why, token_log))

    async def _leave(self, link: WorkerLink, why: str, token_log: TokenLog) -> None:
        pause_s = LEAVE_PAUSE_S[0]
        log.info("call %s shall leave its worker: %s", self._call, why)
        while self._worker.link is link and not self._over.is_set():
            self._lessons = deque()
            steps = token_log.all_steps()
            try:
                other = await self._worker.other(self._brought(token_log, steps, missed=False),
                                                 elsewhere=why != LEASE_LOST)
                if other is link:
                    if why == LEASE_LOST:
                        log.info("call %s has its slot again", self._call)
                        return
                elif other is not None and await self._follow(link, other, why, len(steps)):
                    return
            except Refusal as refusal:
                log.info("call %s: no other worker yet: %s", self._call, refusal)
            except Exception:  # a task's edge: the call goes on where it is
                log.exception("call %s can't leave its worker", self._call)
            finally:
                self._lessons, self._holding = None, False
            if await happens(self._over, pause_s):
                return
            pause_s = min(2 * pause_s, LEAVE_PAUSE_S[1])

    async def _follow(self, link: WorkerLink, other: WorkerLink, why: str, steps: int) -> bool:
        """Teach `other` until it may take over; False where it can't."""
        try:
            async with asyncio.timeout(FOLLOW_WITHIN_S), contextlib.aclosing(other.messages()) as answers:
                began, taught = await self._teach(other, answers, rebuilds=steps > 0)
            if not self._talking() or self._worker.link is not link:
                return False
        except (WorkerLost, TimeoutError) as lost:
            log.warning("call %s: another worker can't take it: %s", self._call, lost or "it doesn't catch up")
            return False
        else:
            before = self._worker.worker
            self._worker.take_over(other)
            await self._arrived(before, why, steps + taught, self._loop.time() - began)
            await self._send_held()
            link.drop()  # the listener goes on with the other one
            return True
        finally:
            if self._worker.link is not other:
                self._holding = False
                await self._send_held()
                await other.close()
                await self._worker.release()

    async def _teach(self, other: WorkerLink, answers: AsyncIterator[Any], *, rebuilds: bool) -> tuple[float, int]:
        """Returns when `other` knows every step and no frame is under way: since when frames are held, and how many
        steps it was taught: its first answer says that it has rebuilt the call. Raises WorkerLost."""
        assert self._lessons is not None
        taught, began = 0, 0.0
        while True:
            self._news.clear()
            while self._lessons:
                step = self._lessons.popleft()
                await other.teach(step, self._sound_of(step.k))
                await _answer_of(answers, step.k)
                taught += 1
            now = self._loop.time()
            if not self._holding and self._controls.idle and (taught or not rebuilds):
                self._holding, began = True, now
            if self._holding and (self._last_step_k >= self.last_sent_k or now - began > HELD_S):
                if not self._lessons:
                    return began, taught
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HELD_S if self._holding else None):
                    await self._news.wait()

    async def _send_held(self) -> None:
        while waiting := [(k, pcm) for k, pcm in self._heard if k > self.last_sent_k]:
            await self._send(*waiting[0])
        self._holding = False

    def _sound_of(self, k: int) -> bytes:
        for heard_k, pcm in reversed(self._heard):
            if heard_k == k:
                return pcm
        raise WorkerLost("behind", f"frame {k} isn't kept any more")


async def _answer_of(answers: AsyncIterator[Any], k: int) -> None:
    async for message in answers:
        if isinstance(message, wire.Step) and message.k >= k:
            return
    raise WorkerLost("closed", "it closed while it followed")
