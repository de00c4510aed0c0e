"""The library's side of a call: pjsua2's callbacks translate and enqueue, methods below run by Endpoint.command."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import pjsua2 as pj

from calls.causes import cause_in
from sip.patch import Patch

log = logging.getLogger(__name__)

RINGING, SESSION_PROGRESS, OK, DECLINED = 180, 183, 200, 603
SDP_NAME = "tandem"  # RFC 4566, 5.2
MOST_NOTES = 64  # of a transfer's progress that wait for the loop

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
    held_by: Literal["", "local", "remote"]

    @property
    def on_hold(self) -> bool:
        return self.held_by != ""


@dataclass(frozen=True)
class Traffic:
    """RTP so far: packets that came, packets that we sent, those of ours that the other side says it lost, and how
    often it has said so."""

    received: int
    sent: int
    lost_there: int
    reports: int


@dataclass(frozen=True)
class Progress:
    """Of a transfer: the answer to our REFER, or what a NOTIFY told."""

    status: int
    reason: str
    of_refer: bool
    final: bool


_NEVER_FREED: list[Leg] = []


class Leg(pj.Call):  # type: ignore[misc]
    """One call of the library's. Callbacks come on its threads, events are the loop's.

    A leg is never freed: pj::Call's destructor hangs up whatever call has its number by then, which is another one's
    as soon as the library has given the number out again. Some 3 kB a call, next to the library's own 30 kB, are
    given back when the process is replaced; it ends by `os._exit`, without destructors.
    """

    def __init__(
        self, account: pj.Account, call_id: int | None, loop: asyncio.AbstractEventLoop, ended: Callable[[Leg], None],
    ) -> None:
        """A call that came in, by its number, or one that we shall make. `ended` is called on the loop when nothing of
        it is left in the library."""
        super().__init__(account, pj.PJSUA_INVALID_ID if call_id is None else call_id)
        _NEVER_FREED.append(self)
        self._loop = loop
        self._ended = ended
        self.patch: Patch | None = None  # who hears whom, from before the answer until it has ended
        self.media: Media | None = None
        self.media_up = asyncio.Event()
        self.media_changed = asyncio.Event()
        self.ringing = asyncio.Event()
        self.picked_up = asyncio.Event()  # by us, or by whom we called
        self.acknowledged = asyncio.Event()
        self.gone = asyncio.Event()
        self.status = 0  # the last one, of either side
        self.reason = ""
        self.cause: int | None = None  # Q.850's, where the other side told one
        self.progress: asyncio.Queue[Progress] = asyncio.Queue(MOST_NOTES)
        self.on_key: Callable[[str, str], None] = lambda key, via: None
        self.on_hold: Callable[[bool, str], None] = lambda held, side: None

    # on the library's threads

    @_guarded
    def onCallState(self, prm: pj.OnCallStateParam) -> None:
        info = self.getInfo()
        cause = None
        if info.state == pj.PJSIP_INV_STATE_DISCONNECTED:
            cause = _cause_in(prm.e)
            if self.patch is not None:
                self.patch.leave(self)
        self._loop.call_soon_threadsafe(self._changed, info.state, info.lastStatusCode, info.lastReason, cause)

    @_guarded
    def onCallMediaState(self, prm: pj.OnCallMediaStateParam) -> None:
        info = self.getInfo()  # it owns the list of media: never iterate over a temporary's
        media = Media(0, "", "remote")
        for index, stream in enumerate(info.media):
            if stream.type == pj.PJMEDIA_TYPE_AUDIO and stream.dir != pj.PJMEDIA_DIR_NONE:
                if self.patch is not None:
                    self.patch.join(self, self.getAudioMedia(index))
                media = Media(index, str(self.getStreamInfo(index).codecName), _held_by(stream.status))
                break
            if stream.type == pj.PJMEDIA_TYPE_AUDIO:
                media = Media(index, "", _held_by(stream.status) or "remote")
        self._loop.call_soon_threadsafe(self._media_changed, media)

    @_guarded
    def onCallSdpCreated(self, prm: pj.OnCallSdpCreatedParam) -> None:
        """Our name in each description of ours, in place of the library's: some parsers want one."""
        said = str(prm.sdp.wholeSdp)
        prm.sdp.wholeSdp = said.replace("o=- ", f"o={SDP_NAME} ", 1).replace("s=pjmedia", "s=-", 1)

    @_guarded
    def onDtmfDigit(self, prm: pj.OnDtmfDigitParam) -> None:
        via = "info" if prm.method == pj.PJSUA_DTMF_METHOD_SIP_INFO else "rfc4733"
        self._loop.call_soon_threadsafe(self._pressed, str(prm.digit), via)

    @_guarded
    def onCallTsxState(self, prm: pj.OnCallTsxStateParam) -> None:
        state = prm.e.body.tsxState
        if state.tsx.method == "REFER" and state.tsx.role == pj.PJSIP_ROLE_UAC and state.tsx.statusCode >= OK:
            self._loop.call_soon_threadsafe(
                self._progressed, Progress(int(state.tsx.statusCode), str(state.tsx.statusText), True, False))

    @_guarded
    def onCallTransferStatus(self, prm: pj.OnCallTransferStatusParam) -> None:
        self._loop.call_soon_threadsafe(
            self._progressed, Progress(int(prm.statusCode), str(prm.reason), False, bool(prm.finalNotify)))
        if prm.finalNotify:
            prm.cont = False

    @_guarded
    def onCallTransferRequest(self, prm: pj.OnCallTransferRequestParam) -> None:
        """A caller's REFER: the library would dial whomever it names, at our cost."""
        log.warning("refused a transfer to %.100r", prm.dstUri)
        prm.statusCode = DECLINED

    @_guarded
    def onCallReplaceRequest(self, prm: pj.OnCallReplaceRequestParam) -> None:
        log.warning("refused a call that would replace this one")
        prm.statusCode = DECLINED

    # on the loop

    def _changed(self, state: int, status: int, reason: str, cause: int | None) -> None:
        self.status, self.reason = status, reason
        if state == pj.PJSIP_INV_STATE_EARLY:
            self.ringing.set()
        elif state == pj.PJSIP_INV_STATE_CONFIRMED:
            self.picked_up.set()
            self.acknowledged.set()
        elif state == pj.PJSIP_INV_STATE_DISCONNECTED:
            self.cause = cause
            self.gone.set()
            self._ended(self)

    def _media_changed(self, media: Media) -> None:
        before = self.media
        if not media.codec and before is not None:  # nothing flows: what was agreed before stays
            media = replace(before, held_by=media.held_by)
        self.media = media
        self.media_up.set()
        self.media_changed.set()
        if before is not None and before.held_by != media.held_by:
            self.on_hold(media.on_hold, media.held_by or before.held_by)

    def _pressed(self, key: str, via: str) -> None:
        self.on_key(key, via)

    def _progressed(self, progress: Progress) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.progress.put_nowait(progress)

    # by Endpoint.command

    def dial(self, uri: str, caller_id: str) -> None:
        """Call the address; `caller_id`, a From header's value, or nothing for the account's own."""
        order = pj.CallOpParam(True)
        if caller_id:
            order.txOption.localUri = caller_id
        self.makeCall(uri, order)

    def ring(self) -> None:
        self.answer(_answer(RINGING))

    def early(self) -> None:
        """Sound before the answer, at nobody's cost."""
        self.answer(_answer(SESSION_PROGRESS))

    def pick_up(self) -> None:
        self._loop.call_soon_threadsafe(self.picked_up.set)
        self.answer(_answer(OK))

    def turn_away(self, status: int, retry_after_s: int | None) -> None:
        answer = _answer(status)
        if retry_after_s is not None:
            answer.txOption.headers.append(_header("Retry-After", str(retry_after_s)))
        self.answer(answer)

    def hang_up(self, cause: int | None = None) -> None:
        """`cause`: Q.850's, which the other side is told (RFC 3326)."""
        if self.isActive():
            order = pj.CallOpParam(True)
            if cause is not None:
                order.txOption.headers.append(_header("Reason", f"Q.850;cause={cause}"))
            self.hangup(order)

    def send_keys(self, keys: str) -> str:
        """Press keys; returns how: rfc4733, or info where the other side takes no telephone events."""
        order = pj.CallSendDtmfParam()
        order.digits = keys
        try:
            order.method = pj.PJSUA_DTMF_METHOD_RFC2833
            self.sendDtmf(order)
            return "rfc4733"
        except pj.Error:
            order.method = pj.PJSUA_DTMF_METHOD_SIP_INFO
            self.sendDtmf(order)
            return "info"

    def hold(self) -> None:
        self.setHold(pj.CallOpParam(True))

    def resume(self) -> None:
        order = pj.CallOpParam(True)
        order.opt.flag = pj.PJSUA_CALL_UNHOLD
        self.reinvite(order)

    def refer(self, uri: str) -> None:
        self.xfer(uri, pj.CallOpParam(True))

    def traffic(self) -> Traffic:
        assert self.media is not None
        rtcp = self.getStreamStat(self.media.index).rtcp
        return Traffic(int(rtcp.rxStat.pkt), int(rtcp.txStat.pkt), int(rtcp.txStat.loss), int(rtcp.txStat.updateCount))


def _held_by(status: int) -> Literal["", "local", "remote"]:
    if status == pj.PJSUA_CALL_MEDIA_ACTIVE:
        return ""
    return "local" if status == pj.PJSUA_CALL_MEDIA_LOCAL_HOLD else "remote"


def _cause_in(event: pj.SipEvent) -> int | None:
    """The cause that the message told which ended the call; None where it was none of the other side's."""
    if event.type != pj.PJSIP_EVENT_TSX_STATE or event.body.tsxState.type != pj.PJSIP_EVENT_RX_MSG:
        return None
    return cause_in(str(event.body.tsxState.src.rdata.wholeMsg))


def _answer(status: int) -> pj.CallOpParam:
    answer = pj.CallOpParam(True)
    answer.statusCode = status
    return answer


def _header(name: str, value: str) -> pj.SipHeader:
    header = pj.SipHeader()
    header.hName, header.hValue = name, value
    return header
