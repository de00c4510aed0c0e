"""One SIP process: its endpoint, its calls, its signs of life, until it is told to end or is due for replacement."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import ClassVar, Literal

import pjsua2 as pj
from redis.asyncio import Redis

from calls.events import CallEnded, CallReceived, EndReason
from calls.routing import Refusal
from calls.settings import Settings
from media.bridge import CallBridge, ShuttingDown
from sip.accounts import DEFAULT_AGENT, LocalAccount, Route, account_config, route
from sip.addresses import address_of, call_id, request_uri
from sip.call import Leg, SipCall
from sip.endpoint import Endpoint, EndpointSettings

log = logging.getLogger(__name__)


class Bridge(CallBridge):
    """`run` serves calls until `stop`, or until it has served as many as one process should and is idle."""

    protocol: ClassVar[Literal["sip", "webrtc"]] = "sip"

    def __init__(self, settings: Settings, redis: Redis, secret: bytes) -> None:
        super().__init__(settings, redis, secret)
        self.endpoint = Endpoint(EndpointSettings(settings.sip_host, settings.sip_port))
        self._account: LocalAccount
        self._legs: set[Leg] = set()  # all that the library still knows

    @property
    def capacity(self) -> int:
        return self.endpoint.capacity

    async def run(self, ready: Callable[[int], None]) -> None:
        """Serve; `ready` is told the SIP port. Raises EndpointError when it can't start."""
        await self.endpoint.start(self._rejected)
        await self.endpoint.command(self._open_account)
        ready(self.endpoint.port)
        log.info("SIP on %s:%d, UDP and TCP, %d calls at a time", self._settings.sip_host, self.endpoint.port,
                 self.endpoint.capacity)
        await self.run_until_stopped()
        await self.endpoint.stop()

    def is_due(self) -> bool:
        idle = not self._calls and not self._legs and not self._recordings.busy and not self._events.unsent
        return idle and self._served >= self._settings.sip_recycle_calls

    # on the library's threads

    def _open_account(self) -> None:
        self._account = LocalAccount(self._incoming)
        self._account.create(account_config(self._settings.sip_host, self._settings.rtp_port, DEFAULT_AGENT))

    def _incoming(self, account: LocalAccount, prm: pj.OnIncomingCallParam) -> None:
        leg = Leg(account, prm.callId, self._loop, self._forget)
        message = str(prm.rdata.wholeMsg)
        if not self._closing:
            leg.ring()
        self._loop.call_soon_threadsafe(self._take, leg, message, str(leg.getInfo().remoteUri))

    def _rejected(self, prm: pj.OnRejectedIncomingCallParam) -> None:
        """The library has turned a call away on its own, having no room for it."""
        self._loop.call_soon_threadsafe(
            self._note_rejected, str(prm.rdata.wholeMsg), str(prm.remoteInfo), int(prm.statusCode), str(prm.reason))

    # on the loop

    def _take(self, leg: Leg, message: str, caller: str) -> None:
        """A new call: all that it needs, and a task that runs it."""
        self._legs.add(leg)
        callee = request_uri(message)
        way = route(callee, self._settings.model_name)
        session = self.new_session(self._received(message, caller, callee, way), way.model)
        call = SipCall(leg, session, self.endpoint, self._settings.retry_after_s)
        refusal: Refusal | None = ShuttingDown("this SIP process is ending") if self._closing else None
        log.info("call %s from %s to %s", session.call, address_of(caller), callee)
        self.carry(call, call.serve(refusal))

    def _forget(self, leg: Leg) -> None:
        """The library knows this call no more, so its ports are free for another."""
        self._legs.discard(leg)
        ports, leg.ports = leg.ports, None
        if ports is not None:
            self.endpoint.ports.give_back(ports)

    def _note_rejected(self, message: str, caller: str, status: int, reason: str) -> None:
        if self._events.full:
            log.warning("a call was turned away with %d %s; too many events wait to note it", status, reason)
            return
        callee = request_uri(message)
        call = uuid.uuid4().hex
        way = route(callee, self._settings.model_name)
        self._events.emit(call, 0, self._received(message, caller, callee, way))
        why = EndReason.BUSY if status == 486 else EndReason.FAILED  # 486: no call of the library's was free
        self._events.emit(call, 0, CallEnded(why, "local", status, f"this SIP process: {reason}", 0, 0, 0, 0))

    def _received(self, message: str, caller: str, callee: str, way: Route) -> CallReceived:
        return CallReceived("sip", "inbound", address_of(caller), callee, call_id(message), self.name, way.agent)
