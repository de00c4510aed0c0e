"""What every bridge process is, whatever carries its calls: its sessions, its signs of life, its end in order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import secrets
import socket
import uuid
from collections.abc import Coroutine
from typing import ClassVar, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.agents import Agent
from calls.configuration import Follower
from calls.controls import Control, ControlInbox, Result
from calls.events import CallReceived, EndReason, Transport
from calls.live import EventWriter
from calls.log_context import current_call
from calls.monologues import MonologueTeller, Told
from calls.routing import BridgeRegistry, Router, RoutingUnavailable
from calls.settings import Settings
from calls.state import State
from calls.trace_export import Traces
from media.recordings import Keeper, Storage
from media.session import Events, Overloaded, Session, SessionSettings
from media.tap_server import TapServer
from media.taps import Taps

log = logging.getLogger(__name__)

RECORDINGS_DRAIN_S = 10.0  # at the end, for the last recordings to be kept
EVENTS_DRAIN_S = 5.0  # at the end, for the last events to reach Redis
LAST_CALLS_S = 6.0  # for calls that we end to say goodbye
LAST_WORDS_S = 3.0  # for what still talks to Redis then
POLL_S = 0.05
RETRY_S = 0.5  # while Redis is away


class ShuttingDown(Overloaded):
    """This process ends, or is replaced."""

    reason: ClassVar[EndReason] = EndReason.SHUTDOWN


class Carried(Protocol):
    """A call that a bridge carries."""

    @property
    def session(self) -> Session: ...


class CallBridge:
    """One process's calls; a transport's bridge adds how they come in, and `capacity`."""

    protocol: ClassVar[Transport]

    def __init__(self, settings: Settings, redis: Redis, secret: bytes) -> None:
        self.name = f"{socket.gethostname()}-{self.protocol}-{secrets.token_hex(4)}"
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._traces = Traces.of(settings, self.protocol, self.name)
        self._events = EventWriter(redis, self.name, kept_events=settings.kept_events, tell=self._traces.note)
        self._router = Router(redis, secret, lease_s=settings.lease_s)
        self._registry = BridgeRegistry(redis, expiry_s=settings.expiry_s)
        self._afterwards = EventWriter(redis, f"{self.name}-recordings", kept_events=settings.kept_events)
        self._recordings = Keeper(Storage(settings.recordings), settings.recording_codec, self._afterwards)
        self._controls = ControlInbox(redis, self.name)
        self._monologues = MonologueTeller(redis)
        self._configuration = Follower(redis, settings)
        self._taps = TapServer(secret, self._taps_of)
        self._replying: set[asyncio.Task[None]] = set()
        self._calls: dict[Carried, asyncio.Task[None]] = {}
        self._served = 0
        self._closing = False  # may be read by a library's threads too
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def capacity(self) -> int:
        """How many calls this process carries at a time."""
        raise NotImplementedError

    def stop(self) -> None:
        """Take no new calls, let those that run end for at most `drain_s`; a second time: end them now."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    # for the transport's bridge

    async def follow_configuration(self) -> None:
        """Before the first call: who answers is known, and followed from here on."""
        self._following = asyncio.create_task(self._configuration.run())
        await self._configuration.first()

    def new_session(self, received: CallReceived, agent: Agent, events: Events | None = None, *,
                    call: str | None = None) -> Session:
        """A call has come in, for this agent as it is now; `events` in place of this process's, to overhear them."""
        settings = SessionSettings(
            self._settings.lease_s, self._settings.data_dir,
            records=agent.recorded and self._settings.recording == "on",
            move_within_s=self._settings.move_within_s, rules=agent.in_calls, sampling=agent.sampling,
            persona=agent.persona, notice=self._settings.recording_notice or "")
        return Session(call or uuid.uuid4().hex, received, agent.model, leases=self._router,
                       events=events or self._events, recordings=self._recordings, settings=settings)

    def carry(self, call: Carried, work: Coroutine[None, None, None]) -> None:
        """Run a call's task to its end."""
        context = contextvars.copy_context()
        context.run(current_call.set, call.session.call)
        task = asyncio.create_task(work, context=context)
        self._calls[call] = task
        task.add_done_callback(lambda _: self._done(call))
        self._in_background(self._controls.here([call.session.call], self._settings.expiry_s))

    async def run_until_stopped(self) -> None:
        """Give signs of life and send events; after `stop` end the calls, so that nothing of them is lost."""
        await self._taps.start(self._settings.tap_host)
        writers = (self._events, self._afterwards)
        sending = [asyncio.create_task(writer.run()) for writer in writers]
        beating = asyncio.create_task(self._heart())
        controlling = asyncio.create_task(self._take_controls())
        telling = asyncio.create_task(self._monologues.run(self._written))
        await self._stop.wait()
        await self._drain()
        if unkept := await self._recordings.drain(RECORDINGS_DRAIN_S):
            log.warning("%d recordings are left for the persister to keep", unkept)
        unsent = sum(await asyncio.gather(*(writer.drain(EVENTS_DRAIN_S) for writer in writers)))
        if unsent:
            log.error("%d events could not be sent and are lost", unsent)
        self._over.set()
        await self._traces.close()
        await self._taps.close()
        for task in (*sending, controlling, telling, self._following):
            task.cancel()
        await asyncio.wait((*sending, beating, controlling, telling, self._following, *self._replying),
                           timeout=LAST_WORDS_S)
        with contextlib.suppress(RoutingUnavailable):
            await self._registry.leave(self.name)

    def is_due(self) -> bool:
        """Whether this process should make room for a fresh one, and nobody would notice."""
        return False

    async def beat(self) -> None:
        """A sign of life; raises RoutingUnavailable."""
        capacity = 0 if self._closing else self.capacity
        await self._registry.beat(self.name, self.protocol, len(self._calls), capacity, self._taps.url)
        with contextlib.suppress(RedisError, OSError):  # then they can't be reached, which the beat has told
            await self._controls.here([call.session.call for call in self._calls], self._settings.expiry_s)
            await self._monologues.look()

    def _written(self) -> Told:
        """By all its calls' agents since the last time."""
        lasts = {call.session.call: call.session.talk.written for call in self._calls if call.session.talk is not None}
        return {id: frames for id, last in lasts.items() if last is not None and (frames := last.take())}

    def _taps_of(self, id: str) -> Taps | None:
        """Of a call that talks."""
        return next((call.session.taps for call in self._calls
                     if call.session.call == id and call.session.state is State.TALKING), None)

    async def _take_controls(self) -> None:
        """What operators want of this process's calls, as it comes."""
        while not self._over.is_set():
            try:
                control = await self._controls.next()
            except (RedisError, OSError):
                await asyncio.sleep(RETRY_S)
                continue
            if control is None:
                continue
            session = next((call.session for call in self._calls if call.session.call == control.call), None)
            if session is not None:
                await session.control(control, functools.partial(self._reply, control))
            else:
                self._reply(control, Result(control.id, "refused", 0, 0, "the call is over"))

    def _reply(self, control: Control, result: Result) -> None:
        self._in_background(self._controls.reply(control, result))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        """Something for Redis that nobody here waits for; without Redis it is left out."""
        async def tried() -> None:
            with contextlib.suppress(RedisError, OSError):
                await work

        task = asyncio.create_task(tried())
        self._replying.add(task)
        task.add_done_callback(self._replying.discard)

    def _done(self, call: Carried) -> None:
        task = self._calls.pop(call)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call %s failed", call.session.call, exc_info=error)
        self._served += 1
        self._in_background(self._controls.gone(call.session.call))

    async def _heart(self) -> None:
        """A sign of life every `heartbeat_s`; calls go on without Redis, so its absence is only logged."""
        reachable = True
        while not self._over.is_set():
            try:
                await self.beat()
                reachable = True
            except RoutingUnavailable as away:
                if reachable:
                    log.warning("no new calls can be taken: %s", away)
                reachable = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.heartbeat_s):
                    await self._over.wait()
            if self.is_due() and not self._closing:
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
