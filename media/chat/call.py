"""One chat of a Moshi client's: a session, its clock, and the WebSocket that carries it.

    connected ──▶ Session.prepare ──▶ handshake ──▶ clock, 20 ms ──▶ Session.over ──▶ closed
                    └── Refusal: an error, closed

The clock is ours, begun by the client's first sound. What it says waits in a line of which each tick takes 20 ms; a
tick that finds too little hears silence, after which the line is that much longer: it grows to what the network's
unevenness needs. One that has grown beyond MOST_WAITING loses its oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from calls import wire
from calls.events import EndReason
from calls.routing import Refusal
from media.audio import CHUNK, CHUNK_S, SAMPLE_RATE, Samples, to_pcm16
from media.chat import protocol
from media.chat.ogg import BadOgg, OggReader, OggWriter
from media.chat.protocol import Kind
from media.crossing import Crossing
from media.opus import DECODED_RATE, Decoder, Encoder
from media.session import Session
from media.webrtc.limits import Bucket

log = logging.getLogger(__name__)

MOST_WAITING = SAMPLE_RATE * 24 // 100  # 240 ms: three of the largest pages that clients send
KEPT_WAITING = SAMPLE_RATE * 8 // 100  # of it, when the oldest are lost
FIRST_SOUND_S = 2.0  # for which the clock waits
IN_HAND_S = 2 * CHUNK_S  # the clock begins so long after the first sound
LATE_S = 0.012  # that sound may come after its tick
LATEST_TICK_S = 1.0  # behind its time; then the clock's schedule begins anew
MESSAGES_TO_CLIENT = 100  # of 20 ms; a client that takes them slower than they come is cut off
BYTES_PER_S, BYTES_AT_ONCE, MESSAGE_COSTS = 64_000, 256_000, 200
GOODBYE_S = 1.0


class Said:
    """What the client says, decoded, on its way to the clock."""

    def __init__(self) -> None:
        self._ogg, self._decoder = OggReader(), Decoder()
        self._line: Samples = np.zeros(0, np.float32)
        self.shed = 0  # samples

    def push(self, pages: bytes) -> bool:
        """Whether there is any sound in it. Raises BadOgg."""
        decoded = [self._decoder.decode(packet) for packet in self._ogg.push(pages)]
        sounds = [sound for sound in decoded if sound is not None]
        self._line = np.concatenate([self._line, *sounds])
        if self._line.size > MOST_WAITING:
            self.shed += self._line.size - KEPT_WAITING
            self._line = self._line[-KEPT_WAITING:]
        return bool(sounds)

    @property
    def is_short(self) -> bool:
        return self._line.size < CHUNK

    def pop(self) -> bytes | None:
        """The next 20 ms; None where they aren't there yet."""
        if self.is_short:
            return None
        chunk, self._line = self._line[:CHUNK], self._line[CHUNK:]
        return to_pcm16(chunk)


class ChatCall:
    """A chat from its connection to its end, on the loop."""

    session: Session  # set before `serve`

    def __init__(self, connection: ServerConnection, agent: str) -> None:
        self._connection, self._agent = connection, agent
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(MESSAGES_TO_CLIENT)
        self._said = Said()
        self._came = asyncio.Event()  # sound, since the event was last cleared
        self._began = False  # sound before the handshake isn't kept
        self._encoder, self._ogg = Encoder(), OggWriter(secrets.randbits(32), SAMPLE_RATE)
        self._bucket = Bucket(BYTES_PER_S, BYTES_AT_ONCE)

    async def serve(self) -> None:
        """The chat's whole life."""
        self.session.on_text = self._text
        beside = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]
        line = ""
        try:
            line = await self._serve(beside)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.gather(self._say_goodbye(line), self.session.close())
            if self._said.shed:
                log.info("call %s: %.2f s of what the client said came too late", self.session.call,
                         self._said.shed / SAMPLE_RATE)
            del self._said, self._encoder  # with them go FFmpeg's threads

    async def _serve(self, beside: list[asyncio.Task[None]]) -> str:
        """Returns what the client is to be told at the end, where there is anything wrong."""
        try:
            if not await self.session.prepare():
                return ""
        except Refusal as refusal:
            return str(refusal)
        self._began = True
        self._post(protocol.HANDSHAKE)
        self._post(protocol.metadata(self.session.call, self._agent, self.session.model))
        self._post(protocol.audio(self._ogg.headers()))
        beside.append(asyncio.create_task(self._tick(self.session.answered("opus"))))
        over = asyncio.create_task(self.session.over())
        done, _ = await asyncio.wait((over, beside[-1]), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        for task in done:
            task.result()  # raises what has failed
        reason = self.session.end_reason
        return "" if reason in (EndReason.CALLER_HUNG_UP, EndReason.AGENT_HUNG_UP, None) else str(reason.value)

    async def _tick(self, crossing: Crossing) -> None:
        """The call's clock: every 20 ms of an absolute schedule a piece each way."""
        await self._sound(FIRST_SOUND_S)
        due = self._loop.time() + IN_HAND_S
        while True:
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            packet = self._encoder.encode(crossing.wanted())
            if packet:
                samples = CHUNK * DECODED_RATE // SAMPLE_RATE
                self._post(protocol.audio(self._ogg.page(packet, samples)))
            if self._said.is_short:
                await self._sound(LATE_S)
            chunk = self._said.pop()
            crossing.received(chunk, concealed=chunk is None)
            due += CHUNK_S
            if due < self._loop.time() - LATEST_TICK_S:
                log.warning("call %s: its clock was late", self.session.call)
                due = self._loop.time()

    async def _sound(self, within_s: float) -> None:
        """Wait for the client's next sound, but not longer."""
        self._came.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._came.wait()

    async def _receive(self) -> None:
        """The client's messages until it goes."""
        try:
            async for message in self._connection:
                if not self._bucket.take(len(message) + MESSAGE_COSTS, self._loop.time()):
                    self.session.end(EndReason.FAILED, "the client sends too much")
                    return
                if isinstance(message, bytes) and message:
                    self._take(message)
        except BadOgg as bad:
            self.session.end(EndReason.FAILED, f"the client's sound can't be read: {bad}")
        except ConnectionClosed:
            pass
        finally:
            if self._connection.close_code is not None:
                self.session.hung_up()

    def _take(self, message: bytes) -> None:
        match message[0]:
            case Kind.AUDIO if self._began:
                if self._said.push(message[1:]):
                    self._came.set()
            case Kind.AUDIO:
                self._said.push(message[1:])
                while self._said.pop() is not None:  # the stream's headers count, its sound is of the past
                    pass
            case Kind.PING:
                self._post(message)

    def _text(self, told: wire.Text) -> None:
        """A token of the agent's, when it is taken; it is heard a moment later."""
        if told.speaker == "agent" and told.piece:
            self._post(protocol.text(told.piece))

    def _post(self, message: bytes) -> None:
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.session.hung_up(EndReason.MEDIA_LOST, "the client takes sound too slowly")
            self._connection.transport.abort()

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._connection.send(await self._outbox.get())

    async def _say_goodbye(self, line: str) -> None:
        """The last messages and, where something is wrong, what; then close."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                while not self._outbox.empty():
                    await self._connection.send(self._outbox.get_nowait())
                if line:
                    await self._connection.send(protocol.error(line))
        code = CloseCode.TRY_AGAIN_LATER if line and not self._began else CloseCode.NORMAL_CLOSURE
        await self._connection.close(code)
