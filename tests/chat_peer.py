"""A Moshi client as Kyutai's are, by the bytes of their protocol; Ogg and Opus are FFmpeg's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator
from fractions import Fraction

import av
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

RATE = 24000


class Pages(io.RawIOBase):
    """Where FFmpeg's muxer writes."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.bytes += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]

    def take(self) -> bytes:
        taken = bytes(self.bytes)
        self.bytes.clear()
        return taken


def ogg_messages(samples: np.ndarray, piece: int, rate: int = RATE) -> list[bytes]:
    """A stream in the pieces in which a client's encoder gives it away, one page of `piece` samples each."""
    pages = Pages()
    messages = []
    with av.open(pages, "w", format="ogg", options={"page_duration": "1", "flush_packets": "1"}) as container:
        stream = container.add_stream("libopus", rate=rate, layout="mono", options={
            "application": "voip", "frame_duration": str(1000 * piece // rate)})
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.format = "s16"
        for at in range(0, len(samples) - piece + 1, piece):
            frame = av.AudioFrame.from_ndarray(
                (samples[at:at + piece] * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for packet in stream.encode(frame):
                container.mux(packet)
            messages.append(pages.take())
    messages.append(pages.take())
    return [message for message in messages if message]


def decoded(pages: bytes) -> np.ndarray:
    """What FFmpeg makes of a whole stream, at our rate."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
    with av.open(io.BytesIO(pages)) as container:
        return np.concatenate([resampled.to_ndarray()[0] for frame in container.decode(audio=0)
                               for resampled in resampler.resample(frame)])


class ChatPeer:
    """A client that is connected."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.kinds: list[int] = []
        self.pages = b""
        self.audio_messages: list[bytes] = []
        self.text = ""
        self.handshake = b""
        self.metadata: dict[str, str] = {}
        self.error = ""
        self.close_code: int | None = None
        self._receiving = asyncio.create_task(self._receive())

    async def _receive(self) -> None:
        try:
            async for message in self._connection:
                assert isinstance(message, bytes)
                self.kinds.append(message[0])
                match message[0]:
                    case 0:
                        self.handshake = message
                    case 1:
                        self.audio_messages.append(message[1:])
                        self.pages += message[1:]
                    case 2:
                        self.text += message[1:].decode()
                    case 4:
                        self.metadata = json.loads(message[1:])
                    case 5:
                        self.error = message[1:].decode()
        except ConnectionClosed:
            pass
        self.close_code = self._connection.close_code

    async def send(self, kind: int, payload: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(bytes((kind,)) + payload)

    async def say(self, samples: np.ndarray, piece: int) -> None:
        """In real time, one message a piece, as a microphone gives it."""
        due = asyncio.get_running_loop().time()
        for message in ogg_messages(samples, piece):
            await self.send(1, message)
            due += piece / RATE
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))

    async def closed(self) -> None:
        async with asyncio.timeout(10):
            await self._receiving

    @property
    def heard(self) -> np.ndarray:
        return decoded(self.pages)


@contextlib.asynccontextmanager
async def chatting(port: int, query: str = "", *, basic: str = "", bearer: str = "") -> AsyncIterator[ChatPeer]:
    """Raises what `websockets` raises for a client that isn't let in."""
    headers = {}
    if basic:
        headers["Authorization"] = f"Basic {base64.b64encode(basic.encode()).decode()}"
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    async with connect(f"ws://127.0.0.1:{port}/api/chat{query}", additional_headers=headers,
                       compression=None) as connection:
        peer = ChatPeer(connection)
        yield peer
        await connection.close()
        await peer.closed()
