"""A bridge process's door for operators who listen: `/tap`, a WebSocket that serves one operator's ear and voice.

Who connects shows a grant of the web role's (calls/taps.py), once. What they don't take waits, at most FRAMES_WAITING
frames; the next drops the oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from calls import taps, wire
from calls.taps import BadGrant, Grant, Joined, Talks
from media.taps import TapRefused, Taps

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64  # of one process
OPEN_TIMEOUT_S = 3.0
ALIVE_S = 2.0  # between two pings, and for the answer to one: who doesn't is gone
FRAMES_WAITING = 6
CLOSE_S = 1.0


class _Connected:
    """A Tap: what it is told waits for its sender."""

    def __init__(self, grant: Grant) -> None:
        self.id, self.by = grant.id, grant.by
        self.ended = False
        self._frames: deque[bytes] = deque(maxlen=FRAMES_WAITING)
        self._talks: list[bytes] = []
        self._wake = asyncio.Event()

    def hear(self, k: int, heard: bytes, said: bytes) -> None:
        self._frames.append(wire.encode(wire.Audio(k, heard + said)))
        self._wake.set()

    def talks(self, on: bool) -> None:
        self._talks = [taps.encode(Talks(on))]  # the last word counts
        self._wake.set()

    def over(self) -> None:
        self.ended = True
        self._wake.set()

    async def send(self, connection: ServerConnection) -> None:
        """What waits, until the call is over."""
        while not self.ended:
            await self._wake.wait()
            self._wake.clear()
            while self._talks or self._frames:
                await connection.send(self._talks.pop() if self._talks else self._frames.popleft())
        await connection.send(wire.encode(wire.Close(wire.CloseReason.ENDED)))


class TapServer:
    """`taps_of` finds a call that talks, by its id."""

    def __init__(self, secret: bytes, taps_of: Callable[[str], Taps | None]) -> None:
        self._secret, self._taps_of = secret, taps_of
        self._server: Server | None = None
        self.url = ""

    async def start(self, host: str) -> None:
        """Listen on any free port of `host`, an address as others reach it. Calls go on without."""
        try:
            self._server = await serve(
                self._handle, host, 0, process_request=self._let_in, compression=None, max_size=taps.MAX_BYTES,
                open_timeout=OPEN_TIMEOUT_S, ping_interval=ALIVE_S, ping_timeout=ALIVE_S, close_timeout=CLOSE_S,
                server_header=None)
        except OSError as error:
            log.error("TANDEM_TAP_HOST: nobody can listen to calls of this process: %s: %s", host, error.strerror)
            return
        port = next(iter(self._server.sockets)).getsockname()[1]
        self.url = f"ws://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path != taps.PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"operators connect to {taps.PATH}\n")
        if len(connection.server.connections) > MOST_CONNECTIONS:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        """A connection's edge."""
        try:
            tap, of_call = await self._admit(connection)
        except TapRefused as refused:
            with contextlib.suppress(ConnectionClosed):
                await connection.send(wire.encode(wire.Error(refused.code, str(refused))))
            return
        except (ConnectionClosed, TimeoutError):
            return
        sender = asyncio.create_task(tap.send(connection))
        why = "the connection was lost"
        try:
            if await self._take(connection, tap, of_call):
                why = ""
        except wire.WireError as error:
            log.warning("a tap broke the protocol: %s", error)
        except ConnectionClosed:
            pass
        finally:
            of_call.leave(tap, why)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _admit(self, connection: ServerConnection) -> tuple[_Connected, Taps]:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            data = await connection.recv()
        try:
            opened = taps.decode_from_process(data) if isinstance(data, bytes) else None
            if not isinstance(opened, taps.Open):
                raise TapRefused("protocol", "the first message must be open")
            if opened.version != taps.VERSION:
                raise TapRefused("version", f"this bridge speaks version {taps.VERSION}")
            grant = taps.read(opened.grant, self._secret, time.time())
        except (BadGrant, wire.WireError) as bad:
            log.warning("refused a tap: %s", bad)
            raise TapRefused("bad_grant", f"the permission to listen isn't valid: {bad}") from None
        of_call = self._taps_of(grant.call)
        if of_call is None:
            raise TapRefused("not_talking", "the call isn't talking")
        tap = _Connected(grant)
        k = of_call.join(tap)
        try:
            await connection.send(taps.encode(Joined(grant.call, k)))
        except ConnectionClosed:
            of_call.leave(tap, "the connection was lost")
            raise
        return tap, of_call

    async def _take(self, connection: ServerConnection, tap: _Connected, of_call: Taps) -> bool:
        """The operator's sound, until they go; whether they said so."""
        async for data in connection:
            match taps.decode_from_process(data) if isinstance(data, bytes) else None:
                case wire.Audio(_, piece):
                    of_call.say(tap, piece)
                case wire.Close():
                    return True
                case taps.Open():
                    raise wire.WireError("a second open")
        return tap.ended
