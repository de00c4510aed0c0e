"""One WebRTC process: takes browsers' offers from Redis, carries their calls, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Mapping
from typing import ClassVar, Literal

from aiortc import RTCCertificate
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls import taps
from calls.events import CallEnded, CallReceived, EndReason, Transport
from calls.offers import Answer, Inbox, Request
from calls.routing import Busy, Refusal, RoutingUnavailable
from calls.settings import Settings
from calls.turn import credentials
from media.bridge import CallBridge
from media.tap_link import TapLost
from media.webrtc.call import CallOver, Overheard, WebCall
from media.webrtc.ice import IceSettings, Relay, check_address
from media.webrtc.operator import OperatorLine
from media.webrtc.sdp import BadSdp, Offer, parse_offer

log = logging.getLogger(__name__)

REDIS_AWAY_S = 0.5  # before Redis is asked again
FULL = "all calls of this WebRTC process are taken"
ANSWERING = 32  # requests that are dealt with at a time
MOST_OPERATORS = 16  # who listen by this process, beside its calls
LAST_OPERATORS_S = 8.0  # at the end, for their connections to close
TAP_ERRORS: Mapping[str, Literal["busy", "call_over"]] = {"too_many": "busy", "not_talking": "call_over"}


class WebBridge(CallBridge):
    """`run` serves calls until `stop`."""

    protocol: ClassVar[Transport] = "webrtc"

    def __init__(self, settings: Settings, redis: Redis, secret: bytes) -> None:
        super().__init__(settings, redis, secret)
        self._secret = secret
        self._inbox = Inbox(redis, self.name)
        self._certificate = RTCCertificate.generateCertificate()
        self._by_id: dict[str, WebCall] = {}
        self._operators: dict[str, tuple[OperatorLine, asyncio.Task[None]]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def capacity(self) -> int:
        return self._settings.webrtc_calls

    async def run(self) -> None:
        """Raises BadAddress when it can't listen."""
        for host in self._settings.webrtc_hosts:
            check_address(host)
        await self.follow_configuration()
        taking = asyncio.create_task(self._take_requests())
        log.info("WebRTC on %s, %d calls at a time", ", ".join(self._settings.webrtc_hosts), self.capacity)
        await self.run_until_stopped()
        taking.cancel()
        for line, _ in self._operators.values():
            line.end("this process ends")
        await asyncio.wait((taking, *self._answering), timeout=1.0)
        if self._operators:
            await asyncio.wait([task for _, task in self._operators.values()], timeout=LAST_OPERATORS_S)

    async def _take_requests(self) -> None:
        away = False
        while not self._over.is_set():
            if len(self._answering) >= ANSWERING:
                await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
            try:
                request = await self._inbox.next()
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    log.warning("no offers can be taken: %s", error)
                away = True
                await asyncio.sleep(REDIS_AWAY_S)
                continue
            if request is not None:
                task = asyncio.create_task(self._deal_with(request))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _deal_with(self, request: Request) -> None:
        """A request's edge: whatever becomes of it, whoever asked is told."""
        try:
            match request.kind:
                case "call":
                    answer = await self._new_call(request)
                case "offer":
                    answer = await self._later_offer(request)
                case "end":
                    answer = self._end(request)
                case "tap":
                    answer = await self._new_tap(request)
                case "renew":
                    answer = self._renew(request)
        except BadSdp as error:
            answer = Answer("bad_sdp", str(error))
        except Exception:
            log.exception("an offer failed")
            answer = Answer("unavailable", "this call failed")
        with contextlib.suppress(RedisError, OSError):
            await self._inbox.reply(request, answer)

    async def _new_call(self, request: Request) -> Answer:
        offer = parse_offer(request.sdp)
        if self._closing:
            return Answer("unavailable", "this process is ending")
        if len(self._calls) >= self.capacity:
            self._note_busy(request)
            return Answer("busy", FULL)
        if (agent := self._configuration.now.by_name.get(request.agent)) is None:
            return Answer("unavailable", f"there is no agent {request.agent}")
        call = WebCall(self._certificate, self._ice_settings())
        call.session = self.new_session(self._received(request), agent, Overheard(self._events, call.spoken))
        id = call.session.call
        log.info("call %s from %s at %s to %s", id, request.client, request.origin, request.agent)
        answered: asyncio.Future[str | Refusal] = self._loop.create_future()
        self._by_id[id] = call
        self.carry(call, self._serve(call, offer, answered))
        with contextlib.suppress(RoutingUnavailable):
            await self.beat()  # the next offer should know
        match await answered:
            case str(sdp):
                return Answer(call=id, sdp=sdp, bridge=self.name)
            case Busy() as refusal:
                return Answer("busy", str(refusal))
            case Refusal() as refusal:
                return Answer("unavailable", str(refusal))

    async def _serve(self, call: WebCall, offer: Offer, answered: asyncio.Future[str | Refusal]) -> None:
        def tell(answer: str | Refusal) -> None:
            if not answered.done():
                answered.set_result(answer)

        try:
            await call.serve(offer, tell)
        finally:
            del self._by_id[call.session.call]
            tell(Refusal("the call ended before it was answered"))

    async def _later_offer(self, request: Request) -> Answer:
        call = self._by_id.get(request.call)
        if call is None:
            return Answer("call_over", "the call is over")
        try:
            return Answer(call=request.call, sdp=await call.resume(parse_offer(request.sdp)), bridge=self.name)
        except CallOver:
            return Answer("call_over", "the call is over")

    def _end(self, request: Request) -> Answer:
        call = self._by_id.get(request.call)
        if call is None:
            return Answer("call_over", "the call is over")
        call.hang_up()
        return Answer(call=request.call)

    # operators who listen

    async def _new_tap(self, request: Request) -> Answer:
        offer = parse_offer(request.sdp)
        if self._closing:
            return Answer("unavailable", "this process is ending")
        if len(self._operators) >= MOST_OPERATORS:
            return Answer("busy", "too many people listen at this WebRTC process")
        try:
            line = OperatorLine(taps.read(request.grant, self._secret, time.time()), offer, self._certificate,
                                self._ice_settings())
            answer = await line.open(request.tap, request.grant)
        except taps.BadGrant as bad:
            return Answer("unavailable", f"the permission to listen isn't valid: {bad}")
        except TapLost as lost:
            return Answer(TAP_ERRORS.get(lost.code, "unavailable"), str(lost))
        id = line.grant.id
        log.info("%s listens to call %s", line.grant.by, line.grant.call)
        self._operators[id] = line, (task := asyncio.create_task(line.run()))
        task.add_done_callback(lambda _: self._operators.pop(id))
        return Answer(call=id, sdp=answer, bridge=self.name)

    def _renew(self, request: Request) -> Answer:
        line, _ = self._operators.get(request.call, (None, None))
        if line is None or line.grant.by != request.client or not line.renew():
            return Answer("call_over", "you don't listen any more")
        return Answer(call=request.call)

    def _note_busy(self, request: Request) -> None:
        """A call that there is no room for has a row too."""
        if not self._events.full:
            call = uuid.uuid4().hex
            self._events.emit(call, 0, self._received(request))
            self._events.emit(call, 0, CallEnded(EndReason.BUSY, "local", None, FULL, 0, 0, 0, 0))

    def _received(self, request: Request) -> CallReceived:
        caller = f"{request.visitor}@{request.client}" if request.visitor else request.client
        callee = f"{request.origin}#{request.agent}"
        return CallReceived("webrtc", "inbound", caller, callee, request.reference, self.name, request.agent)

    def _ice_settings(self) -> IceSettings:
        settings = self._settings
        relay = None
        if settings.webrtc_relay and settings.turn_servers and settings.turn_secret is not None:
            username, password = credentials(settings.turn_secret.get_secret_value(), self.name)
            relay = Relay(settings.turn_servers[0], username, password)
        return IceSettings(settings.webrtc_hosts, settings.webrtc_port_range, relay)
