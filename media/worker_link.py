"""One call's connection to its worker: opened while it rings, then frames both ways until one side closes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException

from calls import wire
from media.audio import FRAME_BYTES, FRAME_SAMPLES, SAMPLE_RATE

OPEN_TIMEOUT_S = 3.0  # from the first packet to ready
PING_EVERY_S = 0.25
SILENT_AFTER_S = 1.25  # a worker that says nothing for so long is lost
CLOSE_TIMEOUT_S = 1.0  # for the worker's last messages and its close
WRITE_BUFFER_BYTES = 2 * FRAME_BYTES  # what the socket may hold back before a frame waits in the link


class WorkerLost(Exception):
    """The worker can't be had any more. `code` is the worker's own, or one of `unreachable`, `silent`,
    `closed`, `draining`, `lease_lost`, `failed`, `protocol`, `version`, `sound`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Moved:
    """What a call that comes from another worker brings along: the steps that its caller heard, and the caller's last
    frames, numbered: from those up to the last step a codec finds its way again, the later ones weren't heard yet."""

    layout: wire.StepLayout
    steps: tuple[wire.Step, ...]
    heard: tuple[tuple[int, bytes], ...]
    anew: bool = False  # these are all steps since the agent was begun anew


class WorkerLink:
    """A connection that is ready, made by `WorkerLink.open`."""

    def __init__(self, connection: ClientConnection, ready: wire.Ready, ready_at: float) -> None:
        self.ready = ready
        self.boundary_at = ready_at + ready.us_to_boundary / 1e6  # by time.monotonic and the loop's clock
        self.frames_dropped = 0
        self._connection = connection
        self._waiting: tuple[int, bytes] | None = None
        self._wake = asyncio.Event()
        self._last_k = -1
        self._heard_from_at = ready_at
        self._said_close = False
        self._tasks = [asyncio.create_task(self._send_frames()), asyncio.create_task(self._ping())]
        self._lost: WorkerLost | None = None

    @classmethod
    async def open(cls, url: str, call: str, token: str, *, sampling: wire.SamplingSettings | None = None,
                   persona: wire.Persona | None = None, moved: Moved | None = None,
                   timeout_s: float = OPEN_TIMEOUT_S) -> WorkerLink:
        """Connect to the worker at `url` and wait until it is ready; raises WorkerLost within `timeout_s`. With `moved`
        the worker is handed a call that has begun elsewhere."""
        connection: ClientConnection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await connect(
                    url.rstrip("/") + wire.PATH, compression=None, max_size=wire.MAX_BYTES, proxy=None,
                    ping_interval=None, open_timeout=None, close_timeout=CLOSE_TIMEOUT_S,
                    user_agent_header=None, write_limit=WRITE_BUFFER_BYTES)
                opening = wire.Open(call, token, sampling or wire.SamplingSettings(), persona or wire.Persona(),
                                    resume=moved is not None)
                await connection.send(wire.encode(opening))
                ready = _expect_ready(_decode(await connection.recv(), None))
                if moved is not None and moved.layout == ready.layout:
                    past = wire.History(moved.steps, {"heard": len(moved.heard), "anew": moved.anew})
                    await connection.send(wire.encode(past, ready.layout))
                    for k, pcm in moved.heard:
                        await connection.send(wire.encode(wire.Audio(k, pcm)))
        except TimeoutError:
            lost = WorkerLost("unreachable", f"{url} wasn't ready within {timeout_s:g} s")
        except (OSError, InvalidURI, WebSocketException) as error:
            lost = WorkerLost("unreachable", f"{url}: {error}")
        except WorkerLost as error:
            lost = error
        except asyncio.CancelledError:
            if connection is not None:
                connection.transport.abort()
            raise
        else:
            return cls(connection, ready, asyncio.get_running_loop().time())
        if connection is not None:
            connection.transport.abort()
        raise lost

    async def teach(self, step: wire.Step, pcm: bytes) -> None:
        """Have the worker do in this frame what another one did. Raises WorkerLost."""
        self._last_k = step.k
        try:
            await self._connection.send(wire.encode(wire.Follow(step, pcm), self.ready.layout))
        except ConnectionClosed as error:
            raise self._lost or WorkerLost("closed", f"the connection broke: {error}") from None

    def send_frame(self, k: int, pcm: bytes) -> None:
        """Send the caller's frame k; one that still waits in the link is dropped for it, and counted."""
        if self._waiting is not None:
            self.frames_dropped += 1
        self._waiting = (k, pcm)
        self._wake.set()

    async def send_control(self, control: wire.Control) -> bool:
        """What the agent shall do from its next frame on; False when the connection is gone."""
        try:
            await self._connection.send(wire.encode(control))
        except ConnectionClosed:
            return False
        return True

    async def messages(self) -> AsyncGenerator[wire.Audio | wire.Step | wire.Text | wire.Outcome | wire.Leave, None]:
        """What the worker says, until it closes after our `finish`; raises WorkerLost for any other end."""
        layout = self.ready.layout
        try:
            async for data in self._connection:
                self._heard_from_at = asyncio.get_running_loop().time()
                match _decode(data, layout):
                    case wire.Audio(k, pcm) as audio:
                        if k > self._last_k or len(pcm) != FRAME_BYTES:
                            raise WorkerLost("protocol", f"frame {k} of {len(pcm)} bytes answers no frame")
                        yield audio
                    case wire.Step() | wire.Text() | wire.Outcome() | wire.Leave() as message:
                        yield message
                    case wire.Error(code, text):
                        raise WorkerLost(code, text)
                    case wire.Close(reason):
                        if self._said_close and reason is wire.CloseReason.ENDED:
                            return
                        raise WorkerLost(_CLOSE_CODES[reason], "the worker closed the call")
                    case wire.Ready():
                        raise WorkerLost("protocol", "a second ready")
        except ConnectionClosed as error:
            raise self._lost or WorkerLost("closed", f"the connection broke: {error}") from None
        if self._said_close:
            return
        raise self._lost or WorkerLost("closed", "the connection was closed")

    async def finish(self) -> None:
        """Tell the worker that the call is over; `messages` ends after its last ones."""
        self._said_close = True
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(wire.encode(wire.Close(wire.CloseReason.ENDED)))

    async def close(self) -> None:
        """Drop the connection, which frees the slot. Bounded; idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._connection.close()
        except TimeoutError:
            self._connection.transport.abort()

    def drop(self) -> None:
        """Cut the connection at once; `messages` raises."""
        self._connection.transport.abort()

    async def _send_frames(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._waiting is None:
                    continue
                (k, pcm), self._waiting = self._waiting, None
                self._last_k = k
                await self._connection.send(wire.encode(wire.Audio(k, pcm)))

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionClosed):
            for nonce in itertools.count():
                slept_at = loop.time()
                await asyncio.sleep(PING_EVERY_S)
                if loop.time() - slept_at > 2 * PING_EVERY_S:  # it was us who stood still: what it said lies here
                    self._heard_from_at = loop.time()
                if loop.time() - self._heard_from_at > SILENT_AFTER_S:
                    self._lost = WorkerLost("silent", f"the worker said nothing for {SILENT_AFTER_S:g} s")
                    self._connection.transport.abort()
                    return
                if loop.time() - self._heard_from_at >= PING_EVERY_S:  # its frames say as much
                    await self._connection.send(wire.encode(wire.Ping(nonce)))


_CLOSE_CODES = {
    wire.CloseReason.ENDED: "closed", wire.CloseReason.DRAINING: "draining",
    wire.CloseReason.LEASE_LOST: "lease_lost", wire.CloseReason.PROTOCOL: "protocol",
    wire.CloseReason.FAILED: "failed", wire.CloseReason.OVERLOADED: "overloaded",
}


def _decode(data: str | bytes, layout: wire.StepLayout | None) -> wire.FromWorker | None:
    if isinstance(data, str):
        raise WorkerLost("protocol", "the worker sent text where messages are binary")
    try:
        return wire.decode_from_worker(data, layout)
    except wire.WireError as error:
        raise WorkerLost("protocol", str(error)) from None


def _expect_ready(message: wire.FromWorker | None) -> wire.Ready:
    match message:
        case wire.Ready() as ready:
            pass
        case wire.Error(code, text):
            raise WorkerLost(code, text)
        case wire.Close(reason):
            raise WorkerLost(_CLOSE_CODES[reason], "the worker closed before it was ready")
        case _:
            raise WorkerLost("protocol", "the worker's first message isn't ready")
    if ready.version != wire.VERSION:
        raise WorkerLost("version", f"the worker speaks version {ready.version}, this bridge {wire.VERSION}")
    if (ready.sample_rate, ready.frame_samples) != (SAMPLE_RATE, FRAME_SAMPLES):
        theirs, ours = (f"{samples} samples at {rate} Hz" for samples, rate in (
            (ready.frame_samples, ready.sample_rate), (FRAME_SAMPLES, SAMPLE_RATE)))
        raise WorkerLost("sound", f"the worker's frames are {theirs}, a bridge's {ours}")
    return ready
