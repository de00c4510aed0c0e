"""Stand-ins for what surrounds a call: a worker that echoes, leases without Redis, events kept in a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from calls import wire
from calls.events import CallEnded, CallReceived, Envelope, Event
from calls.routing import Lease, NoWorker

LAYOUT = wire.StepLayout(generated_codebooks=2, caller_codebooks=2, pause_heads=0)
SILENT_FRAME = bytes(3840)


@dataclass
class FakeWorker:
    """Speaks calls/wire.py and echoes one frame later; its fields say what it does wrong, and when."""

    slots: int = 4
    refuses: str = ""  # an error code for every connection
    mute: bool = False  # takes frames and says nothing
    delay_s: float = 0.0  # of a step
    ready_after_s: float = 0.0
    says: bytes | None = None  # in every frame, in place of the echo
    us_to_boundary: int = 0
    dies_at_k: int | None = None  # and takes no call any more
    skips: frozenset[int] = frozenset()  # frames that it never answers
    words: dict[int, wire.Text] = field(default_factory=dict)  # sent after the step of this k
    last_word: wire.Text | None = None  # sent when the call ends
    step_of: Callable[[int], wire.Step] = lambda k: step(k)
    used: int = 0
    opens: list[wire.Open] = field(default_factory=list)
    heard: dict[int, bytes] = field(default_factory=dict)  # the caller's frames
    said: dict[int, bytes] = field(default_factory=dict)
    steps: list[wire.Step] = field(default_factory=list)
    deaf_to_controls: bool = False  # they come, and nothing becomes of them
    taught: list[wire.Follow] = field(default_factory=list)  # steps of the worker that had a call
    dies_when_taught: bool = False
    dies_of_history: bool = False  # it takes a call that comes from elsewhere, and breaks
    slow_to_learn: bool = False
    histories: list[wire.History] = field(default_factory=list)  # of calls that came from elsewhere
    controls: list[str] = field(default_factory=list)  # the ids of those that came
    given: list[wire.Control] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)  # of controls, by their id; others are held
    heard_at_first_control: int = 0
    say_takes_s: float = 0.0
    _saying: list[asyncio.Task[None]] = field(default_factory=list)
    closes: list[wire.CloseReason] = field(default_factory=list)
    url: str = ""
    _server: Server | None = None

    async def __aenter__(self) -> FakeWorker:
        self._server = await serve(self._handle, "127.0.0.1", 0, compression=None, max_size=wire.MAX_BYTES)
        self.url = f"ws://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _became(self, connection: ServerConnection, control: wire.Control, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        k = max(self.heard, default=0)
        with suppress(ConnectionClosed):
            await connection.send(wire.encode(wire.Outcome(control.id, self._outcome(control), k, k)))

    def _outcome(self, control: wire.Control) -> str:
        return self.outcomes.get(control.id, "said" if control.action == "say" and not self.outcomes else "held")

    def lose_all(self) -> None:
        """As a process that is killed."""
        assert self._server is not None
        for connection in list(self._server.connections):
            connection.transport.abort()

    async def ask_to_leave(self, reason: wire.CloseReason = wire.CloseReason.DRAINING) -> None:
        await self.say(wire.Leave(reason))

    async def say(self, message: wire.FromWorker) -> None:
        """To all its calls."""
        assert self._server is not None
        for connection in list(self._server.connections):
            await connection.send(wire.encode(message, LAYOUT))

    async def _handle(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            opened = wire.decode_from_bridge(await connection.recv())
            assert isinstance(opened, wire.Open)
            self.opens.append(opened)
            if self.refuses or self.used >= self.slots:
                await connection.send(wire.encode(wire.Error(self.refuses or "busy", "no")))
                return
            self.used += 1
            try:
                with suppress(TimeoutError):  # not longer than there is someone to get ready for
                    await asyncio.wait_for(connection.wait_closed(), self.ready_after_s)
                ready = wire.Ready(0, "fake", 24000, 1920, 2, 2, 2, 0, 1, self.us_to_boundary)
                await connection.send(wire.encode(ready))
                await self._talk(connection)
            finally:
                self.used -= 1

    async def _talk(self, connection: ServerConnection) -> None:
        before = SILENT_FRAME
        async for data in connection:
            assert isinstance(data, bytes)
            match wire.decode_from_bridge(data, LAYOUT):
                case wire.Audio(k, pcm):
                    self.heard[k] = pcm
                    if k == self.dies_at_k:
                        self.refuses = "draining"
                        connection.transport.abort()
                        return
                    if not self.mute and k not in self.skips:
                        await asyncio.sleep(self.delay_s)
                        await self._answer(connection, k, before)
                    before = pcm
                case wire.History() as history:
                    self.histories.append(history)
                    if self.dies_of_history:
                        connection.transport.abort()
                        return
                    for _ in range(history.control_state["heard"]):
                        frame = wire.decode_from_bridge(await connection.recv(), LAYOUT)
                        assert isinstance(frame, wire.Audio)
                        before = frame.pcm
                case wire.Follow(step, pcm) as lesson:
                    if self.dies_when_taught:
                        connection.transport.abort()
                        return
                    while self.slow_to_learn:
                        await asyncio.sleep(0.01)
                    self.taught.append(lesson)
                    await connection.send(wire.encode(wire.Audio(step.k, before)))
                    await connection.send(wire.encode(step, LAYOUT))
                    before = pcm
                case wire.Control(id=control) as given if not self.deaf_to_controls:
                    if not self.controls:
                        self.heard_at_first_control = len(self.heard)
                    self.controls.append(control)
                    self.given.append(given)
                    if given.action == "say" and self.say_takes_s:
                        self._saying.append(asyncio.create_task(self._became(connection, given, self.say_takes_s)))
                    else:
                        await self._became(connection, given)
                case wire.Ping() as ping if not self.mute:
                    await connection.send(wire.encode(ping))
                case wire.Close(reason):
                    self.closes.append(reason)
                    if self.last_word is not None:
                        await connection.send(wire.encode(self.last_word))
                    await connection.send(wire.encode(wire.Close(wire.CloseReason.ENDED)))
                    return

    async def _answer(self, connection: ServerConnection, k: int, pcm: bytes) -> None:
        pcm = pcm if self.says is None else self.says
        self.said[k] = pcm
        self.steps.append(self.step_of(k))
        await connection.send(wire.encode(wire.Audio(k, pcm)))
        await connection.send(wire.encode(self.steps[-1], LAYOUT))
        if k in self.words:
            await connection.send(wire.encode(self.words[k]))


def step(k: int) -> wire.Step:
    return wire.Step(k, 3, 3, 0, (k % 100, None), (7, 8), -1, (), 0.25, 1.5, 0.125, 10, 20)


def word(text: str, first_k: int, last_k: int, k: int | None = None) -> wire.Text:
    return wire.Text(last_k + 1 if k is None else k, "agent", word=text, first_k=first_k, last_k=last_k)


@dataclass
class FakeLeases:
    """Gives out leases on `url`, the first one on `first_url`; `refusal`, `renewal` are raised when set."""

    url: str = ""
    first_url: str = ""
    refusal: Exception | None = None
    renewal: Exception | None = None
    waits_s: float = 0.0  # until a lease is there
    fence: int = 0
    models: list[str] = field(default_factory=list)  # asked for
    held: dict[str, Lease] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)  # workers, by their addresses
    renewed: int = 0
    avoided: list[int] = field(default_factory=list)  # the fences of leases whose worker couldn't be reached

    async def acquire(self, call: str, model: str, *, fence_above: int = 0) -> Lease:
        self.models.append(model)
        await asyncio.sleep(self.waits_s)
        if self.refusal is not None:
            raise self.refusal
        if not self.url:
            raise NoWorker(f"no worker offers {model}")
        self.fence = max(self.fence, fence_above) + 1
        url = self.first_url if self.first_url and len(self.models) == 1 else self.url
        if url not in self.known:
            self.known.append(url)
        worker = f"worker-{1 + self.known.index(url)}"
        self.held[call] = Lease(call, model, worker, "epoch-1", url, self.fence, 0.0)
        return self.held[call]

    async def renew(self, lease: Lease) -> Lease:
        if self.renewal is not None:
            raise self.renewal
        self.renewed += 1
        return replace(lease, expires=lease.expires + 1)

    async def release(self, lease: Lease) -> None:
        self.held.pop(lease.call, None)

    async def avoid(self, lease: Lease) -> None:
        self.avoided.append(lease.fence)

    def token(self, lease: Lease) -> str:
        return f"token-{lease.fence}"


@dataclass
class FakeEvents:
    full: bool = False
    sent: list[Envelope] = field(default_factory=list)

    def emit(self, call: str, fence: int, event: Event, at: datetime | None = None) -> Envelope:
        sequence = 1 + sum((e.call, e.fence) == (call, fence) for e in self.sent)
        self.sent.append(Envelope(call, "bridge-1", fence, sequence, at or datetime.now(UTC), event))
        return self.sent[-1]

    def of(self, kind: type) -> list[Event]:
        return [envelope.event for envelope in self.sent if isinstance(envelope.event, kind)]

    @property
    def ended(self) -> CallEnded:
        """The one end; fails when there is none or more than one."""
        [ended] = self.of(CallEnded)
        assert isinstance(ended, CallEnded)
        return ended


RECEIVED = CallReceived(
    "sip", "inbound", "sip:ann@127.0.0.1", "sip:agent@127.0.0.1", "reference-1", "bridge-1", "agent")


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits for what has to come; fails when it doesn't."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)
