"""One browser's way to us (ICE, RFC 8445), over aioice: named addresses alone, ports of a range, restarts.

aiortc's DTLS stands on this in place of aiortc's own ICE transport, which gathers every address of the machine but
loopback and can't restart. A restart makes a second connection beside the first; DTLS, and with it the call, goes on
over whichever was joined last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aioice import Candidate, Connection
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import StunProtocol
from aioice.stun import Message

from media.webrtc.limits import Bucket
from media.webrtc.sdp import Transport

log = logging.getLogger(__name__)

GATHER_S = 3.0  # for a relay to answer
CONNECT_S = 15.0  # from the answer to a pair of addresses that works
DATAGRAMS_WAITING = 500  # from the socket to DTLS; the next drops the oldest
DATAGRAMS_PER_S = 500  # 50 are sound; what is above it is dropped
PORT_ATTEMPTS = 50


class BadAddress(ValueError):
    """One line that says why we can't listen there."""


def check_address(host: str) -> None:
    """Raises BadAddress for one that isn't this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise BadAddress(f"TANDEM_WEBRTC_HOST: can't listen on {host}: {error.strerror}") from None


@dataclass(frozen=True)
class Relay:
    """A TURN server with credentials that still hold."""

    url: str  # turn:host:port?transport=udp
    username: str
    password: str


@dataclass(frozen=True)
class IceSettings:
    hosts: tuple[str, ...]  # our addresses
    ports: tuple[int, int] | None = None  # first and last UDP port; None: any
    relay: Relay | None = field(default=None, repr=False)


class _Connection(Connection):
    """aioice's, with our addresses; what it receives goes straight to its owner."""

    def __init__(self, settings: IceSettings, received: Callable[[bytes], None], alive: Callable[[], None]) -> None:
        super().__init__(ice_controlling=False, **_relay_options(settings.relay))
        self._settings = settings
        self._received = received
        self._alive = alive

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = 5,
    ) -> list[Candidate]:
        """Our own host candidates in place of the machine's, and the relay's. Raises OSError where none is free."""
        candidates = []
        for host in self._settings.hosts:
            protocol = await self._listen(host)
            protocol.local_candidate = Candidate(
                foundation=candidate_foundation("host", "udp", host), component=component, transport="udp",
                priority=candidate_priority(component, "host"), host=host,
                port=protocol.transport.get_extra_info("sockname")[1], type="host")
            candidates.append(protocol.local_candidate)
            self._protocols.append(protocol)
        return candidates + await super().get_component_candidates(component, [], round(GATHER_S))

    async def _listen(self, host: str) -> StunProtocol:
        loop = asyncio.get_running_loop()
        for port in _tried(self._settings.ports):
            with contextlib.suppress(OSError):
                _, protocol = await loop.create_datagram_endpoint(lambda: StunProtocol(self), local_addr=(host, port))
                return protocol
        raise OSError(f"no UDP port of {host} is free in {self._settings.ports}")

    def data_received(self, data: bytes, component: int) -> None:
        self._received(data)

    def check_incoming(self, message: Message, addr: tuple[str, int], protocol: StunProtocol) -> None:
        """A check of the browser's, whose password was right."""
        self._alive()
        super().check_incoming(message, addr, protocol)


def _tried(ports: tuple[int, int] | None) -> Sequence[int]:
    if ports is None:
        return [0]
    first, last = ports
    return random.sample(range(first, last + 1), min(PORT_ATTEMPTS, last - first + 1))


def _relay_options(relay: Relay | None) -> dict[str, Any]:
    """What aioice wants to know of a TURN server (RFC 7065)."""
    if relay is None:
        return {}
    scheme, _, rest = relay.url.partition(":")
    where = urlsplit(f"//{rest}")
    secure = scheme == "turns"
    transport = dict(part.partition("=")[::2] for part in where.query.split("&")).get("transport")
    return {
        "turn_server": (where.hostname, where.port or (5349 if secure else 3478)), "turn_username": relay.username,
        "turn_password": relay.password, "turn_ssl": secure,
        "turn_transport": transport or ("tcp" if secure else "udp"),
    }


class Ice:
    """What RTCDtlsTransport needs of a transport, and the ICE of one peer connection."""

    role = "controlled"  # the one who answers

    def __init__(self, settings: IceSettings, alive: Callable[[], None]) -> None:
        """`alive` is called with every sign of the browser that it has proven to be its own."""
        self._settings = settings
        self.alive = alive
        self._loop = asyncio.get_running_loop()
        self._connection: _Connection | None = None  # the one that was joined last
        self._coming: _Connection | None = None  # the one whose answer is given and that isn't joined yet
        self._datagrams: deque[bytes] = deque(maxlen=DATAGRAMS_WAITING)
        self._wake = asyncio.Event()
        self._closed = False
        self._bucket = Bucket(DATAGRAMS_PER_S, DATAGRAMS_PER_S)
        self.dropped = 0

    async def gather(self, remote: Transport) -> Transport:
        """Our side of a new connection, without fingerprints. Raises OSError where no port is free."""
        if self._coming is not None:
            await self._coming.close()
        connection = self._coming = _Connection(self._settings, self._take, self.alive)
        connection.remote_username, connection.remote_password = remote.ufrag, remote.password
        for candidate in remote.candidates:
            with contextlib.suppress(ValueError):
                await connection.add_remote_candidate(Candidate.from_sdp(candidate))
        await connection.gather_candidates()
        ours = tuple(candidate.to_sdp() for candidate in connection.local_candidates)
        return Transport(connection.local_username, connection.local_password, (), ours)

    async def join(self) -> None:
        """Wait for the connection that was gathered last to work, and go over to it. Raises ConnectionError."""
        connection = self._coming
        assert connection is not None
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.connect()
        except TimeoutError:
            raise ConnectionError("no pair of addresses works") from None
        if self._coming is not connection or self._closed:
            raise ConnectionError("another one has taken its place")
        before, self._connection, self._coming = self._connection, connection, None
        if before is not None:
            await before.close()

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        connections, self._connection, self._coming = (self._connection, self._coming), None, None
        for connection in connections:
            if connection is not None:
                await connection.close()

    # what RTCDtlsTransport calls

    async def _recv(self) -> bytes:
        while not self._datagrams:
            if self._closed:
                raise ConnectionError("closed")
            self._wake.clear()
            await self._wake.wait()
        return self._datagrams.popleft()

    async def _send(self, data: bytes) -> None:
        """What can't be sent just now is lost, as on any network."""
        if self._closed:
            raise ConnectionError("closed")
        if self._connection is not None:
            with contextlib.suppress(ConnectionError):
                await self._connection.send(data)

    def _take(self, data: bytes) -> None:
        if not data or not self._bucket.take(1, self._loop.time()):
            self.dropped += 1
            return
        self.dropped += len(self._datagrams) == DATAGRAMS_WAITING
        self._datagrams.append(data)
        self._wake.set()
