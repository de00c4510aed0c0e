"""One SIP process: its endpoint, its calls, its signs of life, until it is told to end or is due for replacement."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import uuid
from collections.abc import Callable
from typing import ClassVar

import pjsua2 as pj
from redis.asyncio import Redis

from calls.events import CallEnded, CallReceived, EndReason
from calls.live import EventWriter
from calls.routing import BridgeRegistry, Refusal, Router, RoutingUnavailable
from calls.settings import Settings
from media.recordings import Keeper, Storage
from media.session import Overloaded, Session, SessionSettings
from sip.accounts import DEFAULT_AGENT, LocalAccount, Route, account_config, route
from sip.addresses import address_of, call_id, request_uri
from sip.call import Leg, SipCall
from sip.endpoint import Endpoint, EndpointSettings

log = logging.getLogger(__name__)

RECORDINGS_DRAIN_S = 10.0  # at the end, for the last recordings to be kept
EVENTS_DRAIN_S = 5.0  # at the end, for the last events to reach Redis
LAST_CALLS_S = 6.0  # for calls that we end to say goodbye
LAST_WORDS_S = 3.0  # for what still talks to Redis then
POLL_S = 0.05


class ShuttingDown(Overloaded):
    """This process ends, or is replaced."""

    reason: ClassVar[EndReason] = EndReason.SHUTDOWN


class Bridge:
    """`run` serves calls until `stop`, or until it has served as many as one process should and is idle."""

    def __init__(self, settings: Settings, redis: Redis, secret: bytes) -> None:
        self.name = f"{socket.gethostname()}-sip-{secrets.token_hex(4)}"
        self.endpoint = Endpoint(EndpointSettings(settings.sip_host, settings.sip_port))
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._events = EventWriter(redis, self.name, kept_events=settings.kept_events)
        self._router = Router(redis, secret, lease_s=settings.lease_s)
        self._registry = BridgeRegistry(redis, expiry_s=settings.expiry_s)
        self._afterwards = EventWriter(redis, f"{self.name}-recordings", kept_events=settings.kept_events)
        self._recordings = Keeper(Storage(settings.recordings), settings.recording_codec, self._afterwards)
        self._account: LocalAccount
        self._legs: set[Leg] = set()  # all that the library still knows
        self._calls: dict[SipCall, asyncio.Task[None]] = {}
        self._served = 0
        self._closing = False  # read by the library's threads too
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self, ready: Callable[[int], None]) -> None:
        """Serve; `ready` is told the SIP port. Raises EndpointError when it can't start."""
        await self.endpoint.start(self._rejected)
        await self.endpoint.command(self._open_account)
        writers = (self._events, self._afterwards)
        sending = [asyncio.create_task(writer.run()) for writer in writers]
        beating = asyncio.create_task(self._heart())
        ready(self.endpoint.port)
        log.info("SIP on %s:%d, UDP and TCP, %d calls at a time", self._settings.sip_host, self.endpoint.port,
                 self.endpoint.capacity)
        await self._stop.wait()
        await self._drain()
        if unkept := await self._recordings.drain(RECORDINGS_DRAIN_S):
            log.warning("%d recordings are left for the persister to keep", unkept)
        unsent = sum(await asyncio.gather(*(writer.drain(EVENTS_DRAIN_S) for writer in writers)))
        if unsent:
            log.error("%d events could not be sent and are lost", unsent)
        self._over.set()
        for task in sending:
            task.cancel()
        await asyncio.wait((*sending, beating), timeout=LAST_WORDS_S)
        with contextlib.suppress(RoutingUnavailable):
            await self._registry.leave(self.name)
        await self.endpoint.stop()

    def stop(self) -> None:
        """Take no new calls, let those that run end for at most `drain_s`; a second time: end them now."""
        (self._hurry if self._stop.is_set() else self._stop).set()

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
        session = Session(
            uuid.uuid4().hex, self._received(message, caller, callee, way), way.model, leases=self._router,
            events=self._events, recordings=self._recordings, settings=SessionSettings(
                self._settings.lease_s, self._settings.data_dir, records=self._settings.recording == "on"))
        call = SipCall(leg, session, self.endpoint, self._settings.retry_after_s)
        refusal: Refusal | None = ShuttingDown("this SIP process is ending") if self._closing else None
        log.info("call %s from %s to %s", session.call, address_of(caller), callee)
        task = asyncio.create_task(call.serve(refusal))
        self._calls[call] = task
        task.add_done_callback(lambda _: self._done(call))

    def _done(self, call: SipCall) -> None:
        task = self._calls.pop(call)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call %s failed", call.session.call, exc_info=error)
        self._served += 1

    def _is_due(self) -> bool:
        """Whether this process should make room for a fresh one, and nobody would notice."""
        idle = not self._calls and not self._legs and not self._recordings.busy and not self._events.unsent
        return idle and self._served >= self._settings.sip_recycle_calls

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

    async def _heart(self) -> None:
        """A sign of life every `heartbeat_s`; calls go on without Redis, so its absence is only logged."""
        reachable = True
        while not self._over.is_set():
            capacity = 0 if self._closing else self.endpoint.capacity
            try:
                await self._registry.beat(self.name, "sip", len(self._calls), capacity)
                reachable = True
            except RoutingUnavailable as away:
                if reachable:
                    log.warning("no new calls can be taken: %s", away)
                reachable = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.heartbeat_s):
                    await self._over.wait()
            if self._is_due() and not self._closing:
                log.info("%d calls served: this process makes room for a fresh one", self._served)
                self._stop.set()

    async def _drain(self) -> None:
        """No new calls; those that run go on for `drain_s`, then we end them."""
        self._closing = True
        if self._calls:
            log.info("ending: %d calls go on for at most %g s", len(self._calls), self._settings.drain_s)
        await self._until_idle(self._settings.drain_s, self._hurry)
        for call in self._calls:
            call.session.end(EndReason.SHUTDOWN)
        await self._until_idle(LAST_CALLS_S, asyncio.Event())
        for call in self._calls:
            log.error("call %s doesn't end", call.session.call)

    async def _until_idle(self, timeout_s: float, hurry: asyncio.Event) -> None:
        deadline = self._loop.time() + timeout_s
        while self._calls and not hurry.is_set() and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
