"""An operator's WebRTC process's side of `/tap` (calls/taps.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException

from calls import taps, wire
from calls.taps import Joined, Talks
from media.audio import FRAME_BYTES

OPEN_TIMEOUT_S = 3.0
ALIVE_S = 2.0
CLOSE_S = 1.0
PIECES_WAITING = 10  # of the operator's voice; the next drops the oldest


class TapLost(Exception):
    """The call can't be heard (any more). `code` is the bridge's own, or one of `unreachable`, `lost`, `protocol`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class HeardFrame:
    """Both sides in frame k: what the caller hears and what they say."""

    k: int
    heard: bytes
    said: bytes


class TapLink:
    """A connection that has joined, made by `TapLink.open`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._pieces: deque[bytes] = deque(maxlen=PIECES_WAITING)
        self._wake = asyncio.Event()
        self._sent = 0
        self._sending = asyncio.create_task(self._send())

    @classmethod
    async def open(cls, url: str, grant: str) -> TapLink:
        """Raises TapLost, within a bounded time."""
        connection: ClientConnection | None = None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                connection = await connect(
                    url.rstrip("/") + taps.PATH, compression=None, max_size=taps.MAX_BYTES, proxy=None,
                    ping_interval=ALIVE_S, ping_timeout=ALIVE_S, open_timeout=None, close_timeout=CLOSE_S,
                    user_agent_header=None)
                await connection.send(taps.encode(taps.Open(grant)))
                match _decode(await connection.recv()):
                    case Joined():
                        return cls(connection)
                    case wire.Error(code, text):
                        lost = TapLost(code, text)
                    case _:
                        lost = TapLost("protocol", "the bridge's first message isn't joined")
        except TimeoutError:
            lost = TapLost("unreachable", f"{url} didn't answer within {OPEN_TIMEOUT_S:g} s")
        except (OSError, InvalidURI, WebSocketException) as error:
            lost = TapLost("unreachable", f"{url}: {error}")
        except TapLost as error:
            lost = error
        except asyncio.CancelledError:
            if connection is not None:
                connection.transport.abort()
            raise
        if connection is not None:
            connection.transport.abort()
        raise lost

    async def messages(self) -> AsyncIterator[HeardFrame | Talks]:
        """What the bridge says, until the call is over; raises TapLost for any other end."""
        try:
            async for data in self._connection:
                match _decode(data):
                    case wire.Audio(k, pcm) if len(pcm) == 2 * FRAME_BYTES:
                        yield HeardFrame(k, pcm[:FRAME_BYTES], pcm[FRAME_BYTES:])
                    case Talks() as talks:
                        yield talks
                    case wire.Close():
                        return
        except ConnectionClosed as error:
            raise TapLost("lost", f"the connection to the call broke: {error}") from None
        raise TapLost("lost", "the bridge closed the connection to the call")

    def say(self, piece: bytes) -> None:
        """20 ms of the operator's."""
        self._pieces.append(piece)
        self._wake.set()

    async def close(self) -> None:
        """Say goodbye; bounded, idempotent."""
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_S):
                with contextlib.suppress(ConnectionClosed):
                    await self._connection.send(wire.encode(wire.Close(wire.CloseReason.ENDED)))
                await self._connection.close()
        except TimeoutError:
            self._connection.transport.abort()

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._pieces:
                    await self._connection.send(wire.encode(wire.Audio(self._sent, self._pieces.popleft())))
                    self._sent = (self._sent + 1) & 0xFFFFFFFF


def _decode(data: str | bytes) -> taps.FromBridge | None:
    try:
        return taps.decode_from_bridge(data) if isinstance(data, bytes) else None
    except wire.WireError as error:
        raise TapLost("protocol", str(error)) from None
