"""One SIP process: its endpoint, its calls, its signs of life, until it is told to end or is due for replacement."""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

import pjsua2 as pj
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls import screening
from calls.agents import DEFAULT_AGENT, Agent
from calls.destinations import Address, BadAddress
from calls.dialling import Answer, Dial, DialInbox
from calls.events import CallEnded, CallReceived, EndReason, Transport
from calls.queueing import Queue
from calls.routing import Refusal
from calls.settings import Settings
from calls.telephony import CODECS, Telephony, Trunk
from media.bridge import CallBridge, Carried, ShuttingDown
from sip.accounts import LocalAccount, Place, account_config
from sip.addresses import address_of, call_id, host_of, request_uri, source_of, user_of
from sip.call import Manner, SipCall
from sip.configured import Configured
from sip.counting import Counting
from sip.endpoint import Endpoint, EndpointSettings
from sip.leg import Leg
from sip.outbound import OutboundCall
from sip.trunks import Trunks
from sip.wellformed import encryption, malformed

log = logging.getLogger(__name__)

RETRY_S = 0.5  # while Redis is away
OUTBOUND = "outbound"  # as a kind of calls whose number is limited


class Bridge(CallBridge):
    """`run` serves calls until `stop`, or until it has served as many as one process should and is idle."""

    protocol: ClassVar[Transport] = "sip"

    def __init__(self, settings: Settings, redis: Redis, secret: bytes) -> None:
        super().__init__(settings, redis, secret)
        self.endpoint = Endpoint(EndpointSettings(settings.sip_host, settings.sip_port, tls_ca=settings.sip_tls_ca,
                                                  t1_ms=settings.sip_t1_ms))
        self._account: LocalAccount
        self._place = Place(settings.sip_host, settings.rtp_port, settings.rtp_ports,
                            settings.edge_inner if settings.edge_host else "")
        self._legs: set[Leg] = set()  # all that the library still knows
        self._trunks = Trunks(self.endpoint, self._place, self.name, self._incoming)
        self._configured = Configured(redis, secret, self.name, self._trunks, self._take_over)
        self._dials = DialInbox(redis, self.name)
        self._queue = Queue(redis)
        self._counting = Counting(redis, settings.expiry_s)
        self._dialled: list[float] = []  # when we made calls within the last minute, by the loop's clock

    @property
    def capacity(self) -> int:
        return self.endpoint.capacity

    @property
    def _telephony(self) -> Telephony:
        return self._configured.now

    async def run(self, ready: Callable[[int], None]) -> None:
        """Serve; `ready` is told the SIP port. Raises EndpointError when it can't start."""
        await self.follow_configuration()
        await self.endpoint.start(self._rejected)
        await self.endpoint.command(self._open_account)
        await self._configured.look()
        ready(self.endpoint.port)
        log.info("SIP on %s:%d, UDP and TCP, %d calls at a time", self._settings.sip_host, self.endpoint.port,
                 self.endpoint.capacity)
        beside = [asyncio.create_task(work)
                  for work in (self._configured.run(), self._take_dials(), self._counting.run())]
        await self.run_until_stopped()
        for task in beside:
            task.cancel()
        await asyncio.wait(beside, timeout=1.0)
        await self._configured.leave()
        await self.endpoint.stop()

    def is_due(self) -> bool:
        idle = not self._calls and not self._legs and not self._recordings.busy and not self._events.unsent
        return idle and self._served >= self._settings.sip_recycle_calls

    # how calls are made: sip.transfer.Outgoing

    def allows(self, address: Address) -> bool:
        return self._telephony.outbound.allows(address)

    async def dial(self, leg_made: Callable[[Leg], None], address: Address, caller_id: str) -> Leg:
        leg, caller_id = self._leg_to(address, caller_id)
        leg_made(leg)
        try:
            await self.endpoint.command(lambda: leg.dial(str(address), caller_id))
        except pj.Error:
            self._legs.discard(leg)
            raise
        return leg

    def forget(self, leg: Leg) -> None:
        """The library knows this call no more, so its ports are free for another."""
        self._legs.discard(leg)
        patch, leg.patch = leg.patch, None
        if patch is not None and patch.caller is leg:
            self.endpoint.ports.give_back(patch.ports)

    def _leg_to(self, address: Address, caller_id: str) -> tuple[Leg, str]:
        """A leg that can call this address, and its From."""
        by = self._trunks.account_to(address)
        account, host, user = self._account, self._settings.sip_host, caller_id or DEFAULT_AGENT
        if by is not None:
            account, trunk = by
            host, user = trunk.domain, caller_id or trunk.caller_id or trunk.user or DEFAULT_AGENT
        leg = Leg(account, None, self._loop, self.forget)
        self._legs.add(leg)
        return leg, f"<sip:{user}@{host}>"

    # on the library's threads

    def _open_account(self) -> None:
        self._account = LocalAccount(self._incoming)
        self._account.create(account_config(self._place, DEFAULT_AGENT))

    def _incoming(self, account: pj.Account, prm: pj.OnIncomingCallParam) -> None:
        leg = Leg(account, prm.callId, self._loop, self.forget)
        message = str(prm.rdata.wholeMsg)
        source = source_of(message, str(prm.rdata.srcAddress), self._place.edge)
        caller = address_of(str(leg.getInfo().remoteUri))
        telephony = self._telephony
        trunk = telephony.trunk_from(source)
        refusal: Refusal | None = ShuttingDown("this SIP process is ending") if self._closing else (
            malformed(message) or screening.screened(
                telephony, caller=user_of(caller), host=host_of(caller), source=source, at=datetime.now(UTC))
            or (None if self._place.edge else encryption(message, trunk)))
        if refusal is None:
            leg.ring()
        self._loop.call_soon_threadsafe(self._take, leg, message, caller, trunk, refusal)

    def _rejected(self, prm: pj.OnRejectedIncomingCallParam) -> None:
        """The library has turned a call away on its own, having no room for it."""
        self._loop.call_soon_threadsafe(
            self._note_rejected, str(prm.rdata.wholeMsg), str(prm.remoteInfo), int(prm.statusCode), str(prm.reason))

    # on the loop

    def _take(self, leg: Leg, message: str, caller: str, trunk: Trunk | None, refusal: Refusal | None) -> None:
        """A new call: all that it needs, and a task that runs it."""
        self._legs.add(leg)
        callee, inbound = request_uri(message), self._telephony.inbound
        agent = self._agent_for(user_of(callee), caller, trunk)
        session = self.new_session(self._received(message, caller, callee, agent), agent)
        limits = functools.partial(self._within_limits, session.call, user_of(callee), caller, trunk)
        manner = Manner(inbound, self._queue, limits, offered="application/sdp" in message.lower())
        call = SipCall(leg, session, self.endpoint, self._settings.retry_after_s, self, manner)
        log.info("call %s from %s to %s%s", session.call, caller, callee, f" over {trunk.name}" if trunk else "")
        self.carry(call, call.serve(refusal))

    def _agent_for(self, called: str, caller: str, trunk: Trunk | None) -> Agent:
        """Who answers: by the telephony document's routes, else by the number that is called."""
        name = self._telephony.agent_for(called, user_of(caller), host_of(caller), trunk)
        return self._configuration.now.by_name.get(name or "") or self._configuration.now.called(called)

    async def _within_limits(self, call: str, number: str, caller: str, trunk: Trunk | None) -> Refusal | None:
        """Count the call by number, by caller and by trunk; why it is one too many."""
        inbound = self._telephony.inbound
        kinds = [(f"to {number}", inbound.calls_per_number),
                 (f"from {user_of(caller)}@{host_of(caller)}", inbound.calls_per_caller)]
        kinds += [(f"over trunk {trunk.name}", trunk.calls)] if trunk else []
        for kind, most in kinds:
            if not await self._counting.within(kind, call, most):
                return screening.busy(kind)
        return None

    def _done(self, call: Carried) -> None:
        super()._done(call)
        self._in_background(self._counting.leave(call.session.call))

    async def _take_over(self, telephony: Telephony) -> None:
        """Another version of the telephony document. Calls of all trunks come by one account: it takes SRTP where one
        of them does, and who else brings it is refused one by one (sip.wellformed)."""
        encrypted = any(trunk.srtp != "off" for trunk in telephony.trunks if trunk.enabled)
        config = account_config(self._place, DEFAULT_AGENT, "optional" if encrypted else "off")

        def take_over() -> None:
            self.endpoint.set_codecs(tuple(CODECS[one] for one in telephony.codecs))
            self._account.modify(config)

        await self.endpoint.command(take_over)

    # calls that we make

    async def _take_dials(self) -> None:
        while True:
            try:
                dial = await self._dials.next()
                if dial is not None:
                    await self._dials.reply(await self._make(dial))
            except (RedisError, OSError):
                await asyncio.sleep(RETRY_S)

    async def _make(self, dial: Dial) -> Answer:
        """Make a call, or say why not."""
        outbound = self._telephony.outbound
        try:
            address = self._telephony.address(dial.to, dial.trunk)
        except BadAddress as error:
            return Answer(dial.call, "bad_request", str(error))
        agent = self._configuration.now.by_name.get(dial.agent)
        if agent is None:
            return Answer(dial.call, "bad_request", f"there is no agent {dial.agent}")
        if not outbound.allows(address):
            return Answer(dial.call, "not_allowed", f"{address.user}@{address.host} is none of the destinations that "
                          "we may call (outbound.destinations of the telephony document)")
        if self._closing or len(self._calls) >= self.capacity:
            return Answer(dial.call, "unavailable", "this SIP process has no room for a call")
        now = self._loop.time()
        self._dialled = [at for at in self._dialled if at > now - 60]
        if len(self._dialled) >= outbound.per_minute:
            return Answer(dial.call, "limited", f"{outbound.per_minute} calls a minute are made at most")
        if not await self._counting.within(OUTBOUND, dial.call, outbound.calls):
            return Answer(dial.call, "limited", f"{outbound.calls} calls are made at a time at most")
        trunk = self._telephony.trunk_to(address.host)
        if trunk is not None and not await self._counting.within(f"over trunk {trunk.name}", dial.call, trunk.calls):
            await self._counting.leave(dial.call)
            return Answer(dial.call, "limited", f"trunk {trunk.name} takes {trunk.calls} calls at a time at most")
        self._dialled.append(now)
        leg, caller_id = self._leg_to(address, dial.caller_id)
        received = CallReceived("sip", "outbound", address_of(caller_id), str(address), "", self.name, agent.name)
        session = self.new_session(received, agent, call=dial.call)
        call = OutboundCall(leg, session, self.endpoint, self, address, caller_id, dial, outbound)
        log.info("call %s to %s, by order of %s", session.call, address, dial.by)
        self.carry(call, call.serve())
        return Answer(dial.call)

    # what is told of calls

    def _note_rejected(self, message: str, caller: str, status: int, reason: str) -> None:
        if self._events.full:
            log.warning("a call was turned away with %d %s; too many events wait to note it", status, reason)
            return
        callee = request_uri(message)
        call = uuid.uuid4().hex
        agent = self._configuration.now.called(user_of(callee))
        self._events.emit(call, 0, self._received(message, address_of(caller), callee, agent))
        why = EndReason.BUSY if status == 486 else EndReason.FAILED  # 486: no call of the library's was free
        self._events.emit(call, 0, CallEnded(why, "local", status, f"this SIP process: {reason}", 0, 0, 0, 0))

    def _received(self, message: str, caller: str, callee: str, agent: Agent) -> CallReceived:
        return CallReceived("sip", "inbound", caller, callee, call_id(message), self.name, agent.name)
