"""One SIP call: pjsua2's callbacks translate and enqueue, a task on the loop runs the session.

    INVITE ──▶ 180 at once ──▶ Session.prepare ──▶ 200, media ──▶ Session.over ──▶ BYE ──▶ Session.close
                                    └── Refusal: 486 or 503 with Retry-After
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pjsua2 as pj

from calls.events import EndReason
from calls.routing import Refusal
from media.session import Overloaded, Session
from sip.endpoint import Endpoint
from sip.port_pool import PortPair

log = logging.getLogger(__name__)

MEDIA_TIMEOUT_S = 10.0  # from our 200 to media, which waits for the ACK when the caller made no offer
ACK_TIMEOUT_S = 10.0  # from media to the ACK; the library itself would hold the call for 32 s
BYE_TIMEOUT_S = 3.0  # for the other side to confirm our BYE
RTP_CHECK_S = 5.0
RTP_LOST_S = 60.0  # without a packet of the caller's, unless the call is on hold
RTP_LOST_ON_HOLD_S = 3600.0

RINGING, OK, REQUEST_TERMINATED, DECLINED = 180, 200, 487, 603

Callback = TypeVar("Callback", bound=Callable[..., None])


def _guarded(callback: Callback) -> Callback:
    """The edge of a callback: the library swallows what is raised, so it is logged here."""

    @functools.wraps(callback)
    def guarded(self: Any, prm: Any) -> None:
        try:
            callback(self, prm)
        except pj.Error as error:
            log.warning("%s: %s", callback.__name__, error.reason)
        except Exception:
            log.exception("%s failed", callback.__name__)

    return guarded  # type: ignore[return-value]


@dataclass(frozen=True)
class Media:
    """The call's sound as it was negotiated last."""

    index: int
    codec: str
    on_hold: bool


_NEVER_FREED: list[Leg] = []


class Leg(pj.Call):  # type: ignore[misc]
    """The library's side of a call. Callbacks come on its threads, events are the loop's.

    A leg is never freed: pj::Call's destructor hangs up whatever call has its number by then, which is another one's
    as soon as the library has given the number out again. Some 3 kB a call, next to the library's own 30 kB, are
    given back when the process is replaced; it ends by `os._exit`, without destructors.
    """

    def __init__(
        self, account: pj.Account, call_id: int, loop: asyncio.AbstractEventLoop, ended: Callable[[Leg], None],
    ) -> None:
        """`ended` is called on the loop when nothing of the call is left in the library."""
        super().__init__(account, call_id)
        _NEVER_FREED.append(self)
        self._loop = loop
        self._ended = ended
        self.ports: PortPair | None = None  # lent to this call, from before its answer until it has ended
        self.media: Media | None = None
        self.media_up = asyncio.Event()
        self.acknowledged = asyncio.Event()
        self.gone = asyncio.Event()
        self.status = 0  # the last one, of either side
        self.reason = ""

    # on the library's threads

    @_guarded
    def onCallState(self, prm: pj.OnCallStateParam) -> None:
        info = self.getInfo()
        if info.state == pj.PJSIP_INV_STATE_DISCONNECTED:
            self._disconnect()
        self._loop.call_soon_threadsafe(self._changed, info.state, info.lastStatusCode, info.lastReason)

    @_guarded
    def onCallMediaState(self, prm: pj.OnCallMediaStateParam) -> None:
        info = self.getInfo()  # it owns the list of media: never iterate over a temporary's
        media = Media(0, "", on_hold=True)
        for index, stream in enumerate(info.media):
            if stream.type == pj.PJMEDIA_TYPE_AUDIO and stream.dir != pj.PJMEDIA_DIR_NONE:
                if self.ports is not None:
                    self.ports.connect(self.getAudioMedia(index))
                on_hold = stream.status != pj.PJSUA_CALL_MEDIA_ACTIVE
                media = Media(index, str(self.getStreamInfo(index).codecName), on_hold)
                break
        self._loop.call_soon_threadsafe(self._media_changed, media)

    @_guarded
    def onCallTransferRequest(self, prm: pj.OnCallTransferRequestParam) -> None:
        """A caller's REFER: the library would dial whomever it names, at our cost."""
        log.warning("refused a transfer to %.100r", prm.dstUri)
        prm.statusCode = DECLINED

    @_guarded
    def onCallReplaceRequest(self, prm: pj.OnCallReplaceRequestParam) -> None:
        log.warning("refused a call that would replace this one")
        prm.statusCode = DECLINED

    def _disconnect(self) -> None:
        """Nobody who is lent our ports next may hear this call, so they are taken off it before that can be."""
        if self.ports is not None and self.media is not None:
            with contextlib.suppress(pj.Error):  # the library has done it itself
                self.ports.disconnect(self.getAudioMedia(self.media.index))

    # on the loop

    def _changed(self, state: int, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        if state == pj.PJSIP_INV_STATE_CONFIRMED:
            self.acknowledged.set()
        elif state == pj.PJSIP_INV_STATE_DISCONNECTED:
            self.gone.set()
            self._ended(self)

    def _media_changed(self, media: Media) -> None:
        if not media.codec and self.media is not None:  # nothing flows: what was agreed before stays
            media = replace(self.media, on_hold=True)
        self.media = media
        self.media_up.set()

    # by Endpoint.command

    def ring(self) -> None:
        self.answer(_answer(RINGING))

    def pick_up(self) -> None:
        self.answer(_answer(OK))

    def turn_away(self, status: int, retry_after_s: int) -> None:
        answer = _answer(status)
        header = pj.SipHeader()
        header.hName, header.hValue = "Retry-After", str(retry_after_s)
        answer.txOption.headers.append(header)
        self.answer(answer)

    def hang_up(self) -> None:
        if self.isActive():
            self.hangup(pj.CallOpParam(True))

    def packets_received(self) -> int:
        """Of the caller's so far: RTP, and reports on what we send."""
        assert self.media is not None
        rtcp = self.getStreamStat(self.media.index).rtcp
        return int(rtcp.rxStat.pkt) + int(rtcp.txStat.updateCount)


def _answer(status: int) -> pj.CallOpParam:
    answer = pj.CallOpParam(True)
    answer.statusCode = status
    return answer


class SipCall:
    """A call from its INVITE to its end, on the loop."""

    def __init__(self, leg: Leg, session: Session, endpoint: Endpoint, retry_after_s: int) -> None:
        self.leg = leg
        self.session = session
        self._endpoint = endpoint
        self._turned_away = False
        self._retry_after_s = retry_after_s

    async def serve(self, refusal: Refusal | None = None) -> None:
        """Run the call, or refuse it; returns when we have done with it, which the library may not have."""
        beside = [asyncio.create_task(self._tell_session()), asyncio.create_task(self._watch())]
        status: int | None = None
        try:
            status = await (self._turn_away(refusal) if refusal else self._serve())
        except pj.Error as error:
            log.warning("call %s: %s", self.session.call, error.reason)
            self.session.end(EndReason.FAILED, error.reason)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(self._hang_up(), self.session.close(status or self.leg.status or None))

    async def _serve(self) -> int | None:
        """The call's life; returns its final status."""
        session, leg = self.session, self.leg
        try:
            if not await session.prepare():
                if not leg.gone.is_set():  # it was us who ended it while it rang
                    return await self._turn_away(Overloaded("the call was ended while it rang"))
                return leg.status or REQUEST_TERMINATED
        except Refusal as refusal:
            return await self._turn_away(refusal)
        ports = leg.ports = self._endpoint.ports.lend()
        await self._endpoint.command(leg.pick_up)
        if not await self._media():
            return leg.status
        assert leg.media is not None
        ports.attach(session.answered(leg.media.codec))
        await session.over()
        ports.detach()
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
            self.session.hung_up(EndReason.CALLER_HUNG_UP)
        elif self.leg.media_up.is_set():
            self.session.hung_up(EndReason.FAILED, f"{self.leg.status} {self.leg.reason}")
        else:
            self.session.hung_up(EndReason.CANCELLED)

    async def _watch(self) -> None:
        """Ends a call that nobody acknowledged, or from whose caller nothing comes any more."""
        await self.leg.media_up.wait()
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await self.leg.acknowledged.wait()
        except TimeoutError:
            self.session.end(EndReason.FAILED, "the caller never acknowledged the answer")
            return
        loop = asyncio.get_running_loop()
        packets, since, warned = 0, loop.time(), False
        while True:
            await asyncio.sleep(RTP_CHECK_S)
            try:
                now_packets = await self._endpoint.command(self.leg.packets_received)
            except pj.Error:  # a held call has no stream
                now_packets = packets
            if now_packets != packets:
                packets, since, warned = now_packets, loop.time(), False
                continue
            held = self.leg.media is not None and self.leg.media.on_hold
            silent_s = loop.time() - since
            if not warned and not held:
                log.warning("call %s: no sound comes from the caller", self.session.call)
                warned = True
            if silent_s >= (RTP_LOST_ON_HOLD_S if held else RTP_LOST_S):
                self.session.end(EndReason.MEDIA_LOST, f"nothing came from the caller for {silent_s:.0f} s")
                return

    async def _hang_up(self) -> None:
        """Say goodbye, if neither side has; bounded, as the other one may be dead."""
        if self.leg.gone.is_set():
            return
        try:
            if not self._turned_away:
                await self._endpoint.command(self.leg.hang_up)
            async with asyncio.timeout(BYE_TIMEOUT_S):
                await self.leg.gone.wait()
        except pj.Error as error:
            log.info("call %s: %s", self.session.call, error.reason)
        except TimeoutError:
            log.info("call %s: the caller doesn't confirm the end", self.session.call)
