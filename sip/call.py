"""One SIP call that came in: a task on the loop runs the session; what both directions share is SipCall's.

    INVITE ──▶ 180 at once ──▶ Session.prepare ──▶ 200, media ──▶ Session.over ──▶ BYE ──▶ Session.close
                                    ├── all slots taken: 183, a waiting sound, until one is free
                                    └── Refusal: 403, 480, 486 or 503 with Retry-After
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pjsua2 as pj

from calls.causes import ON_TIMER, q850
from calls.controls import Control
from calls.events import EndReason
from calls.queueing import Queue
from calls.routing import Refusal
from calls.telephony import Inbound
from media.line import OnLine
from media.session import Overloaded, Session
from media.waiting import Waiting
from media.worker_hold import happens
from sip.endpoint import Endpoint
from sip.leg import OK, Leg
from sip.patch import Patch
from sip.transfer import Outgoing, Transfer
from sip.waiting import WaitingSound, waiting_sound
from sip.watch import Watch

log = logging.getLogger(__name__)

MEDIA_TIMEOUT_S = 10.0  # from our 200 to media, which waits for the ACK when the caller made no offer
BYE_TIMEOUT_S = 3.0  # for the other side to confirm our BYE
HOLD_TIMEOUT_S = 10.0  # for the other side to agree to a hold, or to its end
REMIND_S = 50.0
REQUEST_TIMEOUT, REQUEST_TERMINATED = 408, 487


async def _unlimited() -> Refusal | None:
    return None


@dataclass(frozen=True)
class Manner:
    """How a call that comes in is taken. `limits` says why it is one too many, at a time, or counts it."""

    inbound: Inbound = field(default_factory=Inbound)
    queue: Queue | None = None
    limits: Callable[[], Awaitable[Refusal | None]] = _unlimited
    offered: bool = True  # the INVITE brought an offer: sound may flow before the answer

    def waiting(self, begins: Callable[[int], Awaitable[None]]) -> Waiting | None:
        """For a slot, where all are taken; None where callers don't wait."""
        if self.queue is None or not self.inbound.queue_s:
            return None
        return Waiting(self.queue, self.inbound.queue_s, self.inbound.queue_most, begins)

    @property
    def ring_s(self) -> float:
        """At least so long before the answer."""
        return self.inbound.ring_s if self.inbound.answer != "at_once" else 0.0


class SipCall:
    """A call from its INVITE to its end, on the loop."""

    def __init__(self, leg: Leg, session: Session, endpoint: Endpoint, retry_after_s: int, outgoing: Outgoing,
                 manner: Manner = Manner()) -> None:
        self.leg = leg
        self.session = session
        self._endpoint = endpoint
        self._turned_away = False
        self._manner = manner
        self._retry_after_s = retry_after_s
        self._transfer = Transfer(leg, session, endpoint, outgoing)
        leg.on_key = session.line.pressed
        leg.on_hold = self._held
        session.telephone(self)

    async def serve(self, refusal: Refusal | None = None) -> None:
        """Run the call, or refuse it; returns when we have done with it, which the library may not have."""
        watch = Watch(self.leg, self.session, self._endpoint)
        beside = [asyncio.create_task(work) for work in (self._tell_session(), watch.run(), self._tell_of_human())]
        status: int | None = None
        try:
            status = await (self._turn_away(refusal) if refusal else self._serve())
        except pj.Error as error:
            log.warning("call %s: %s", self.session.call, error.reason)
            self.session.end(EndReason.FAILED, error.reason)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(
                self._hang_up(), self._transfer.end(),
                self.session.close(status or self.leg.status or None, self.leg.cause))

    async def on_line(self, control: Control) -> OnLine:
        """What somebody wants of the line. Raises what isn't foreseen."""
        match control.action:
            case "transfer":
                return await self._transfer.carry_out(control)
            case "keys":
                return await self._press(control.text)
            case "hold_call" | "resume_call":
                return await self._hold(control.action == "hold_call")
            case _:
                return OnLine("unsupported")

    async def _serve(self) -> int | None:
        """The call's life; returns its final status."""
        session, leg, manner = self.session, self.leg, self._manner
        ringing_until = asyncio.get_running_loop().time() + manner.ring_s
        reminding = asyncio.create_task(self._remind())
        try:
            if (refusal := await manner.limits()) is not None:
                return await self._turn_away(refusal)
            if manner.inbound.answer == "early_media" and manner.ring_s:
                await self._sound_early()
            if not await session.prepare(manner.waiting(self._queued)):
                if not leg.gone.is_set():  # it was us who ended it while it rang
                    return await self._turn_away(Overloaded("the call was ended while it rang"))
                return leg.status or REQUEST_TERMINATED
            if (left_s := ringing_until - asyncio.get_running_loop().time()) > 0 and await happens(leg.gone, left_s):
                return leg.status or REQUEST_TERMINATED
        except Refusal as refusal:
            return await self._turn_away(refusal)
        finally:
            reminding.cancel()
        self._patch().ports.detach()
        await self._endpoint.command(leg.pick_up)
        if not await self._media():
            return leg.status
        return await self._talk()

    def _patch(self) -> Patch:
        """Who hears whom; from here on ports are lent to the call."""
        if self.leg.patch is None:
            self.leg.patch = Patch(self.leg, self._endpoint.ports.lend(), self._endpoint.waiting_tone)
        return self.leg.patch

    async def _sound_early(self) -> None:
        """The waiting sound before the answer, at nobody's cost."""
        if not self._manner.offered or self.leg.patch is not None:
            return
        sound: WaitingSound = await waiting_sound(self._manner.inbound.sound)
        self._patch().ports.attach(sound)
        await self._endpoint.command(self.leg.early)

    async def _queued(self, before: int) -> None:
        """All slots are taken: the caller waits."""
        self.session.line.note("queued", "local", f"{before} before it, at most {self._manner.inbound.queue_s:g} s")
        await self._sound_early()

    async def _remind(self) -> None:
        """That it still rings, or sounds, as proxies give up after some minutes (RFC 3261, 13.3.1.1)."""
        while True:
            await asyncio.sleep(REMIND_S)
            await self._endpoint.command(self.leg.early if self.leg.patch is not None else self.leg.ring)

    async def _talk(self) -> int:
        """Answered: sound flows until one side ends it."""
        leg = self.leg
        assert leg.media is not None
        assert leg.patch is not None
        leg.patch.ports.attach(self.session.answered(leg.media.codec))
        await self.session.over()
        if leg.patch is not None:  # else its ports are back in the pool, as the library's call has ended
            leg.patch.ports.detach()
        return OK

    async def _media(self) -> bool:
        """Whether sound can flow; ends the session when it can't in time."""
        leg, session = self.leg, self.session
        media = asyncio.create_task(leg.media_up.wait())
        over = asyncio.create_task(session.over())
        await asyncio.wait((media, over), timeout=MEDIA_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        media.cancel()
        over.cancel()
        if not leg.media_up.is_set() and not session.has_ended:
            session.end(EndReason.FAILED, "the caller never acknowledged the answer")
        return leg.media_up.is_set() and not session.has_ended

    async def _turn_away(self, refusal: Refusal) -> int:
        self.session.refuse(refusal)
        self._turned_away = True
        await self._endpoint.command(lambda: self.leg.turn_away(refusal.sip_status, self._retry_after_s))
        return refusal.sip_status

    async def _tell_session(self) -> None:
        """That the library's call has ended, by whomever."""
        await self.leg.gone.wait()
        if self.leg.acknowledged.is_set():
            self._tell_end()
        elif self.leg.picked_up.is_set():
            self.session.hung_up(EndReason.FAILED, f"{self.leg.status} {self.leg.reason}")
        else:
            self.session.hung_up(EndReason.CANCELLED)

    def _tell_end(self) -> None:
        """Of a call in which both sides talked: the library gives up whoever doesn't refresh it in time (RFC 4028), or
        doesn't answer within it."""
        leg = self.leg
        if leg.status == REQUEST_TIMEOUT and not self.session.has_ended:
            leg.cause = ON_TIMER
            self.session.hung_up(EndReason.FAILED, f"{leg.status} {leg.reason}".rstrip("."))
        else:
            self.session.hung_up(EndReason.CALLER_HUNG_UP)

    async def _tell_of_human(self) -> None:
        """The human to whom the caller was joined has hung up: so do we."""
        await self._transfer.until_the_human_goes()
        self.session.end(EndReason.TRANSFERRED, "the human to whom the caller was joined hung up")

    def _held(self, held: bool, side: str) -> None:
        self.session.line.note("held" if held else "resumed", "local" if side == "local" else "remote")

    async def _press(self, keys: str) -> OnLine:
        try:
            via = await self._endpoint.command(lambda: self.leg.send_keys(keys))
        except pj.Error as error:
            return OnLine("refused", error.reason)
        return OnLine("sent", via)

    async def _hold(self, hold: bool) -> OnLine:
        leg = self.leg
        assert leg.media is not None
        if hold == (leg.media.held_by == "local"):
            return OnLine("already")
        leg.media_changed.clear()
        try:
            await self._endpoint.command(leg.hold if hold else leg.resume)
            async with asyncio.timeout(HOLD_TIMEOUT_S):
                await leg.media_changed.wait()
        except pj.Error as error:
            return OnLine("refused", error.reason)
        except TimeoutError:
            return OnLine("refused", "the other side didn't agree to it")
        return OnLine("held" if hold else "resumed")

    async def _hang_up(self) -> None:
        """Say goodbye, if neither side has; bounded, as the other one may be dead."""
        if self.leg.gone.is_set():
            return
        reason = self.session.end_reason
        try:
            if not self._turned_away:
                await self._endpoint.command(lambda: self.leg.hang_up(q850(reason, None) if reason else None))
            async with asyncio.timeout(BYE_TIMEOUT_S):
                await self.leg.gone.wait()
        except pj.Error as error:
            log.info("call %s: %s", self.session.call, error.reason)
        except TimeoutError:
            log.info("call %s: the caller doesn't confirm the end", self.session.call)
