"""A worker process: bridges connect by WebSocket, one connection a call; device threads step the calls together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import socket
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal
from weakref import WeakSet

from redis.asyncio import Redis
from redis.exceptions import RedisError
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from agent.admission import Admission, Overload, Refused, Verdict
from agent.device_thread import DeviceThread, Resampling, Seat, Stepped, now_us
from agent.engine import Engine
from agent.monologue import Action, Command, Monologue, word_splitter
from agent.moshi.text import TimedWord, Tokenizer, WordTimer
from agent.moshi.transcribe import CallerWords
from agent.repriming import LastSeconds, reprime
from agent.saying import Saying
from agent.synthesis import Synthesiser
from agent.worker_history import binary, check_given, past_of, remember_words
from calls import draining, wire
from calls.log_context import current_call
from calls.priority import STEP, before_others
from calls.routing import Heartbeat, Lease, Router, RoutingUnavailable, WorkerRegistry
from calls.settings import Settings, SettingsError
from calls.trace_export import Traces
from calls.traces import Span

log = logging.getLogger(__name__)

Speaker = Literal["agent", "caller"]

OPEN_TIMEOUT_S = 5.0  # from the connection to its first message
HISTORY_S = 5.0  # for all of a moved call's history to come
ALIVE_S = 5.0  # between two WebSocket pings, and for the answer: a dead bridge's slot is free after twice that
FLUSH_TIMEOUT_S = 1.0  # for the last messages to a bridge that closes
ASKED_AGAIN_S = 30.0  # after which a call that an overloaded worker asked to go may be asked once more
STILL_AT_IT_S = 0.3  # between two signs of life to a bridge whose call is being rebuilt
STUCK_S = 10.0  # a step that takes so long won't end
MORE_CONNECTIONS = 64  # than slots: those that shake hands or are turned away
HEALTH_PATH = "/healthz"
MESSAGES_TO_BRIDGE = 64  # about 20 frames; a bridge that takes them slower than they come is cut off


@dataclass(frozen=True)
class Served:
    """A model as this worker offers it."""

    engine: Engine
    tokenizer: Tokenizer | None  # None: the model has no text
    transcript: tuple[Tokenizer, int] | None = None  # of speech-to-text: its tokenizer, its lag in frames
    synthesiser: Synthesiser | None = None  # in whose voice lines are said; None: the agent's own


@dataclass(eq=False)
class _Call:
    """One connection, from ready to its end."""

    lease: Lease
    connection: ServerConnection
    device: DeviceThread
    tokenizer: Tokenizer | None
    layout: wire.StepLayout
    outbox: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(MESSAGES_TO_BRIDGE))
    words: WordTimer = field(default_factory=WordTimer)
    persona: wire.Persona = field(default_factory=wire.Persona)
    resumes: bool = False  # its history comes first
    caller: CallerWords | None = None  # None: nobody writes down what the caller says
    last_k: int = -1
    too_slow: bool = False
    finished: bool = False  # its bridge said that the call is over
    asked_at: float = -math.inf  # to go elsewhere
    last_seconds: LastSeconds = field(default_factory=LastSeconds)
    repriming: asyncio.Task[None] | None = None
    sayings: WeakSet[Saying] = field(default_factory=WeakSet)  # lines in another voice that may be under way


class Worker:
    """The engines of one process behind one WebSocket address."""

    def __init__(self, settings: Settings, models: Mapping[str, Served], redis: Redis, secret: bytes) -> None:
        self._settings = settings
        self._models = models
        self._redis = redis
        self._registry = WorkerRegistry(redis, expiry_s=settings.expiry_s)
        self._router = Router(redis, secret, lease_s=settings.lease_s)
        self._admission = Admission(
            worker=f"{socket.gethostname()}-{secrets.token_hex(4)}", epoch=secrets.token_hex(8), secret=secret)
        self._traces = Traces.of(settings, "worker", self._admission.worker)
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._devices = {name: DeviceThread(served.engine, self._engine_failed) for name, served in models.items()}
        self._overload = {name: Overload() for name in models}
        self._calls: dict[str, _Call] = {}
        self._left = asyncio.Event()  # a call has left
        self.url = ""

    async def run(self) -> None:
        """Serve until `stop`; then drain. Raises what an engine raised, if one did."""
        settings = self._settings
        before_others(STEP)
        threads: list[DeviceThread | Synthesiser] = [*self._devices.values()]
        threads += [served.synthesiser for served in self._models.values() if served.synthesiser is not None]
        for thread in threads:
            thread.start()
        async with await self._listen() as server:
            self.url = settings.worker_url or _own_url(server, settings.worker_host)
            log.info("worker ready at %s with %s", self.url, ", ".join(
                f"{name} ({served.engine.slots} slots)" for name, served in self._models.items()))
            heart = asyncio.create_task(self._heart())
            try:
                await self._stop.wait()
                await self._drain()
            finally:
                heart.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await heart
                for thread in threads:
                    await asyncio.to_thread(thread.stop)
                with contextlib.suppress(RoutingUnavailable, RedisError):
                    await self._registry.leave(self._admission.worker, self._admission.epoch)
                await self._traces.close()
        if self._failure is not None:
            raise self._failure

    async def _listen(self) -> Server:
        host, port = self._settings.worker_host, self._settings.worker_port
        try:
            return await serve(
                self._handle, host, port, process_request=self._let_in, compression=None, max_size=wire.MAX_BYTES,
                open_timeout=OPEN_TIMEOUT_S, ping_interval=ALIVE_S, ping_timeout=ALIVE_S, server_header=None)
        except OSError as error:
            raise SettingsError(f"TANDEM_WORKER_PORT: can't listen on {host}:{port}: {error.strerror}") from None

    def stop(self) -> None:
        """Take no new calls, have the running ones go elsewhere or end (within `drain_s`), then return from `run`."""
        self._stop.set()

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(
            worker=self._admission.worker, epoch=self._admission.epoch, url=self.url,
            models={name: (device.engine.slots, device.used) for name, device in self._devices.items()},
            draining=self._admission.draining,
            full=tuple(name for name, overload in self._overload.items() if overload.full))

    async def _heart(self) -> None:
        """A sign of life every `heartbeat_s`; running calls don't need Redis, so its absence is only logged."""
        reachable = True
        while True:
            self._judge_load()
            try:
                await self._registry.beat(self.heartbeat())
                await self._follow_order()
                if not reachable:
                    log.info("Redis is back")
                reachable = True
            except (RoutingUnavailable, RedisError, OSError) as error:
                if reachable:
                    log.warning("Redis can't be reached, so no new calls come here: %s", error)
                reachable = False
            await asyncio.sleep(self._settings.heartbeat_s)

    def _judge_load(self) -> None:
        """A device that doesn't keep up takes no new calls; where that isn't enough, one of its calls shall go. One
        that stands still ends the worker."""
        now = time.monotonic()
        for name, device in self._devices.items():
            if device.in_step_s > STUCK_S:
                self._engine_failed(RuntimeError(f"a step of {name} has run for {device.in_step_s:.0f} s"))
            overload, share = self._overload[name], device.load.share(now_us())
            was_full, verdict = overload.full, overload.judge(share, now)
            if overload.full != was_full:
                log.warning("%s: steps take %.0f %% of the time: %s", name, 100 * share,
                            "no new calls" if overload.full else "new calls again")
            if verdict is Verdict.TOO_MUCH:
                # the youngest has the shortest history
                going = [call for call in self._calls.values()
                         if call.device is device and now - call.asked_at > ASKED_AGAIN_S]
                if going:
                    self._ask_to_leave(going[-1], wire.CloseReason.OVERLOADED)

    async def _follow_order(self) -> None:
        """What an operator wants of this worker (calls/draining.py)."""
        drain = await draining.ordered(self._redis, self._admission.worker)
        if drain is None or self._stop.is_set() or drain == self._admission.draining:
            return
        self._admission.draining = drain
        log.info("an operator has this worker %s", "drain" if drain else "take calls again")
        await self._registry.beat(self.heartbeat())
        if drain:
            self._ask_all_to_leave()

    def _ask_all_to_leave(self) -> None:
        for call in list(self._calls.values()):
            self._ask_to_leave(call, wire.CloseReason.DRAINING)

    def _ask_to_leave(self, call: _Call, why: wire.CloseReason) -> None:
        call.asked_at = time.monotonic()
        self._post(call, wire.encode(wire.Leave(why)))

    async def _drain(self) -> None:
        self._admission.draining = True
        with contextlib.suppress(RoutingUnavailable, RedisError, OSError):
            await self._registry.beat(self.heartbeat())  # first, so that no call is sent from here to here
        if self._calls and not self._failure:
            log.info("draining: %d calls go elsewhere, or on for at most %g s", len(self._calls),
                     self._settings.drain_s)
            self._ask_all_to_leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0 if self._failure else self._settings.drain_s):
                while self._calls:
                    self._left.clear()
                    await self._left.wait()
        reason = wire.CloseReason.FAILED if self._failure else wire.CloseReason.DRAINING
        for call in list(self._calls.values()):
            await _say_goodbye(call.connection, reason)

    def _engine_failed(self, error: BaseException) -> None:
        """Called on a device thread: an engine that failed once isn't trusted again, so the process ends."""
        self._failure = error
        self._loop.call_soon_threadsafe(self._stop.set)

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the WebSocket handshake: only our path, and a bound on connections. A probe is answered as long as
        this loop turns."""
        if request.path == HEALTH_PATH:
            return connection.respond(HTTPStatus.OK, "ok\n")
        if request.path != wire.PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"calls connect to {wire.PATH}\n")
        slots = sum(served.engine.slots for served in self._models.values())
        if len(connection.server.connections) > slots + MORE_CONNECTIONS:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        try:
            call, seat = await self._admit(connection)
        except Refused as refused:
            log.warning("refused a connection: %s: %s", refused.code, refused)
            await _say_error(connection, refused.code, str(refused))
            return
        except (ConnectionClosed, TimeoutError):
            return
        sender = asyncio.create_task(_send(call))
        began = datetime.now(UTC)
        try:
            if call.resumes:
                await self._resume(call, seat)
            await self._receive(call, seat)
        except wire.WireError as error:
            log.warning("call %s: the bridge broke the protocol: %s", call.lease.call, error)
            await _say_error(connection, "protocol", str(error))
        except TimeoutError:
            log.warning("call %s: its history didn't come in time", call.lease.call)
        except ConnectionClosed:
            if call.too_slow:
                log.warning("call %s: its bridge took messages too slowly", call.lease.call)
        finally:
            if call.repriming is not None:  # its slot is still worked on
                await asyncio.wait({call.repriming})
            dropped = call.device.leave(seat)
            for saying in call.sayings:
                saying.cancel()
            if self._calls.get(call.lease.call) is call:
                del self._calls[call.lease.call]
            self._left.set()
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await sender
            log.info("call %s left slot %d of %s, %d frames dropped", call.lease.call, seat.slot, call.lease.model,
                     dropped)
            self._traces.add(Span(call.lease.call, "slot", began, datetime.now(UTC), {
                "tandem.model": call.lease.model, "tandem.worker": call.lease.worker, "tandem.slot": seat.slot,
                "tandem.frames_dropped": dropped, "tandem.resumed": call.resumes}))
            if not call.finished:  # its bridge may be dead: then nobody else gives the lease back before it runs out
                with contextlib.suppress(RoutingUnavailable):
                    await self._router.release(call.lease)

    async def _admit(self, connection: ServerConnection) -> tuple[_Call, Seat]:
        """Check the first message, take a slot, answer ready; raises Refused."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                data = await connection.recv()
            opened = wire.decode_from_bridge(binary(data))
        except wire.WireError as error:
            raise Refused("protocol", str(error)) from None
        if not isinstance(opened, wire.Open):
            raise Refused("protocol", "the first message must be an open")
        if opened.version != wire.VERSION:
            raise Refused("version", f"this worker speaks version {wire.VERSION}, not {opened.version}")
        lease = self._admission.check(opened.call, opened.lease, time.time())
        device = self._devices.get(lease.model)
        if device is None:
            raise Refused("unknown_model", f"this worker has no model {lease.model}")
        if self._overload[lease.model].full:
            raise Refused("busy", f"the steps of {lease.model} take all the time there is")
        await self._replace(lease.call)
        info = device.engine.info
        layout = wire.StepLayout(info.generated_codebooks, info.caller_codebooks, info.pause_heads)
        served = self._models[lease.model]
        call = _Call(lease, connection, device, served.tokenizer, layout, persona=opened.persona, resumes=opened.resume,
                     caller=CallerWords(*served.transcript) if served.transcript else None)
        sampling = opened.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        if opened.persona:
            await _or_refused(asyncio.to_thread(device.engine.prepare, opened.persona))
        monologue = Monologue(word_splitter(call.tokenizer)) if call.tokenizer is not None else None
        seat = device.join(sampling, lambda stepped: self._stepped(call, stepped), monologue)
        if seat is None:
            raise Refused("busy", f"all {device.engine.slots} slots of {lease.model} are taken")
        if opened.persona and not opened.resume:
            device.engine.begin(seat.slot, opened.persona)  # a copy, far below a frame's length
            seat.fresh = False
        self._calls[lease.call] = call
        current_call.set(lease.call)
        ready = wire.Ready(
            slot=seat.slot, model=info.name, sample_rate=info.sample_rate, frame_samples=info.frame_samples,
            generated_codebooks=info.generated_codebooks, agent_codebooks=info.agent_codebooks,
            caller_codebooks=info.caller_codebooks, pause_heads=info.pause_heads, largest_delay=info.largest_delay,
            us_to_boundary=seat.us_to_boundary)
        call.outbox.put_nowait(wire.encode(ready))
        log.info("call %s takes slot %d of %s", lease.call, seat.slot, lease.model)
        return call, seat

    async def _replace(self, name: str) -> None:
        """A higher fence for a call that is still here: its bridge lost the old connection, so that one goes."""
        old = self._calls.get(name)
        if old is not None:
            await _say_goodbye(old.connection, wire.CloseReason.LEASE_LOST)

    async def _resume(self, call: _Call, seat: Seat) -> None:
        """The call comes from another worker: bring its slot to where it was, beside the steps of the others."""
        async with asyncio.timeout(HISTORY_S):
            past, ks, call.last_k = await past_of(call.connection, call.layout, call.device.engine.info)
        began = time.monotonic()
        if len(past.text) or call.persona:
            rebuilding = asyncio.create_task(asyncio.to_thread(
                call.device.engine.rebuild, seat.slot, past, call.persona))
            while not (await asyncio.wait({rebuilding}, timeout=STILL_AT_IT_S))[0]:
                self._post(call, wire.encode(wire.Ping(0)))
            try:
                rebuilding.result()
            except ValueError as error:
                raise wire.WireError(str(error)) from None
            seat.fresh = False
            if call.tokenizer is not None:
                remember_words(call.tokenizer, past, ks, call.words, call.caller)
        log.info("call %s goes on here: %d steps, %d frames missed, rebuilt in %.2f s", call.lease.call, len(past.text),
                 len(past.missed), time.monotonic() - began)

    async def _receive(self, call: _Call, seat: Seat) -> None:
        """The bridge's messages until it closes."""
        frame_bytes = 2 * call.device.engine.info.frame_samples
        async for data in call.connection:
            match wire.decode_from_bridge(binary(data), call.layout):
                case wire.Audio(k, pcm):
                    if len(pcm) != frame_bytes or k <= call.last_k:
                        raise wire.WireError(f"frame {k} of {len(pcm)} bytes after frame {call.last_k}; "
                                             f"k must grow, and a frame has {frame_bytes} bytes")
                    call.last_k = k
                    call.last_seconds.came(k, pcm)
                    call.device.frame(seat, k, pcm)
                case wire.Follow(step, pcm):
                    check_given(step, pcm, call.last_k, call.device.engine.info)
                    call.last_k = step.k
                    call.last_seconds.came(step.k, pcm)
                    call.device.frame(seat, step.k, pcm, step)
                case wire.Ping() as ping:
                    self._post(call, wire.encode(ping))
                case wire.Control() as control:
                    self._control(call, seat, control)
                case wire.Open() | wire.History():
                    raise wire.WireError("an open or a history in a call that runs")
                case wire.Close():
                    await self._finish(call)
                    return
                case wire.Error(code, text):
                    log.warning("call %s: its bridge failed: %s: %s", call.lease.call, code, text)
                    return

    def _control(self, call: _Call, seat: Seat, control: wire.Control) -> None:
        """It counts from the call's next frame on, and is answered then; what can't be done at all is answered now."""
        outcome, why = "refused", "too many controls wait for the call's next frame"
        if call.tokenizer is None and control.action != "set":
            outcome, why = "unsupported", "this model has no text"
        elif control.action == "reprime":
            if call.repriming is None or call.repriming.done():
                call.repriming = asyncio.create_task(self._reprime(call, seat, control.id))
                return
            outcome, why = "already", ""
        elif call.device.command(seat, self._command(call, control)):
            return
        k = max(call.last_k, 0)
        self._post(call, wire.encode(wire.Outcome(control.id, outcome, k, k, why)))

    async def _reprime(self, call: _Call, seat: Seat, control: str) -> None:
        outcome, why = await reprime(call.device, seat, call.last_seconds, call.persona)
        k = call.last_seconds.next_k
        self._post(call, wire.encode(wire.Outcome(control, outcome, k, k, why)))

    def _command(self, call: _Call, control: wire.Control) -> Command | Resampling:
        if control.action == "set":
            return Resampling(control.id, control.sampling or wire.SamplingSettings())
        synthesiser, saying = self._models[call.lease.model].synthesiser, None
        if control.action == "say" and synthesiser is not None:
            saying = synthesiser.say(control.text)
        if saying is not None:
            call.sayings.add(saying)
        return Command(control.id, Action(control.action), control.text, control.mute, saying)

    async def _finish(self, call: _Call) -> None:
        """The call is over: the word that its end cut short goes out, and a close that says that all is said."""
        call.finished = True
        self._say(call, call.last_k, "agent", call.words.end())
        if call.caller is not None:
            self._say(call, call.last_k, "caller", call.caller.end())
        self._post(call, wire.encode(wire.Close(wire.CloseReason.ENDED)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await call.outbox.join()

    def _stepped(self, call: _Call, stepped: Stepped) -> None:
        """Called on the device thread."""
        self._loop.call_soon_threadsafe(self._deliver, call, stepped)

    def _deliver(self, call: _Call, stepped: Stepped) -> None:
        step = stepped.step
        call.last_seconds.stepped(step)
        self._post(call, wire.encode(wire.Audio(step.k, stepped.pcm)))
        piece, sampled = map(call.tokenizer.piece, (step.text, step.sampled_text)) if call.tokenizer else ("", "")
        if piece or sampled:
            self._post(call, wire.encode(wire.Text(step.k, "agent", piece=piece, sampled=sampled)))
        self._post(call, wire.encode(step, call.layout))
        for done in stepped.outcomes:
            self._post(call, wire.encode(wire.Outcome(done.id, done.outcome, done.first_k, done.k, done.why)))
        if call.tokenizer is not None:
            self._say(call, step.k, "agent", call.words.feed(step.k, piece))
        if call.caller is not None and step.caller_text >= 0:
            self._say(call, step.k, "caller", call.caller.feed(step.k, step.caller_text))

    def _say(self, call: _Call, k: int, speaker: Speaker, word: TimedWord | None) -> None:
        if word is not None:
            self._post(call, wire.encode(_finished(k, speaker, word)))

    def _post(self, call: _Call, data: bytes) -> None:
        try:
            call.outbox.put_nowait(data)
        except asyncio.QueueFull:
            call.too_slow = True
            call.connection.transport.abort()


async def _or_refused(work: Awaitable[None]) -> None:
    try:
        await work
    except ValueError as error:
        raise Refused("persona", str(error)) from None


async def _send(call: _Call) -> None:
    while True:
        await call.connection.send(await call.outbox.get())
        call.outbox.task_done()


def _finished(k: int, speaker: Speaker, word: TimedWord) -> wire.Text:
    return wire.Text(k, speaker, word=word.text[:256], first_k=word.first_k, last_k=word.last_k)


async def _say_error(connection: ServerConnection, code: str, text: str) -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.send(wire.encode(wire.Error(code[:256], text[:1024])))
        await connection.close()


async def _say_goodbye(connection: ServerConnection, reason: wire.CloseReason) -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.send(wire.encode(wire.Close(reason)))
        await connection.close()


def _own_url(server: Server, host: str) -> str:
    port = next(iter(server.sockets)).getsockname()[1]
    return f"ws://{f'[{host}]' if ':' in host else host}:{port}"
