"""One peer connection of a browser's: its transports, packets of sound, and the data channel `tandem`.

    Ice ──▶ RTCDtlsTransport ──▶ Receiver ──▶ Page.sound          Page.message ◀── data channel ◀─ SCTP ◀─ DTLS
        ◀──                  ◀── Sender   ◀── Peer.send               Peer.say ──▶

ICE is ours, DTLS, SRTP and SCTP are aiortc's, put together here as its own RTCPeerConnection does, which can't restart
ICE and has no place for another jitter buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import replace
from typing import Literal, Protocol, cast

from aiortc import (
    RTCCertificate,
    RTCDataChannel,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    RTCIceTransport,
    RTCSctpCapabilities,
    RTCSctpTransport,
)

from media.webrtc.ice import Ice, IceSettings
from media.webrtc.limits import Bucket
from media.webrtc.rtp import Receiver, Sender
from media.webrtc.sdp import SCTP_PORT, Offer, Transport, render_answer

log = logging.getLogger(__name__)

LABEL = "tandem"
MESSAGE_BYTES = 16 * 1024
DTLS_S = 10.0  # for the handshake
CLOSE_S = 3.0
BUFFERED_BYTES = 64 * 1024  # of words that the page doesn't take; above it nothing more is said
CHANNELS = 4
SCTP_BYTES_PER_S, SCTP_BURST_BYTES = 4096, 256 * 1024  # of the page's: more is misuse


class Page(Protocol):
    """Who owns a peer connection; all of it is called on the loop."""

    def sound(self, peer: Peer, timestamp: int, payload: bytes) -> None: ...
    def message(self, peer: Peer, message: str | bytes) -> None: ...
    def channel_opened(self, peer: Peer) -> None: ...
    def misused(self, peer: Peer, how: str) -> None: ...
    def alive(self, peer: Peer) -> None: ...


class _Sctp(RTCSctpTransport):
    """aiortc's, which bounds neither what waits to be put together nor how fast it comes."""

    def __init__(self, dtls: RTCDtlsTransport, peer: Peer) -> None:
        super().__init__(dtls, SCTP_PORT)
        self._peer = peer
        self._bucket = Bucket(SCTP_BYTES_PER_S, SCTP_BURST_BYTES)

    async def _handle_data(self, data: bytes) -> None:
        if self._peer.takes(len(data), self._bucket):
            await super()._handle_data(data)


class Peer:
    """Made for an offer: `answer`, then `connect`; `restart` for a later offer of the same peer connection."""

    def __init__(self, offer: Offer, page: Page, certificate: RTCCertificate, settings: IceSettings) -> None:
        self._offer = offer
        self._page = page
        self._loop = asyncio.get_running_loop()
        self.ice = Ice(settings, lambda: page.alive(self))
        self._fingerprints = tuple(
            (each.algorithm, each.value) for each in certificate.getFingerprints() if each.algorithm == "sha-256")
        self._dtls = RTCDtlsTransport(cast(RTCIceTransport, self.ice), [certificate])
        self._receiver = Receiver(
            lambda timestamp, payload: page.sound(self, timestamp, payload), self.ice.alive)
        self._sender = Sender(self._dtls, self._receiver)
        self._sctp: _Sctp | None = None
        self._channel: RTCDataChannel | None = None
        self._channels = 0
        self._id = secrets.randbits(62)
        # the offerer leaves it to us: then we begin the handshake, which saves a round trip
        self._setup: Literal["active", "passive"] = "passive" if offer.setup == "active" else "active"
        self._closing: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._dtls.state == "connected" and self._closing is None

    def is_same(self, offer: Offer) -> bool:
        """Whether the offer is of this peer connection: the same certificate. Else it is of a new one."""
        return set(offer.transport.fingerprints) == set(self._offer.transport.fingerprints)

    async def answer(self) -> str:
        """Listen, and say where. Raises OSError where no port is free."""
        return self._render(self._offer, await self.ice.gather(self._offer.transport))

    async def restart(self, offer: Offer) -> str:
        """The answer to an ICE restart of this same peer connection, to be followed by `rejoin`."""
        return self._render(offer, await self.ice.gather(offer.transport))

    async def rejoin(self) -> None:
        """Wait until the restarted ICE works. Raises ConnectionError."""
        await self.ice.join()

    async def connect(self) -> None:
        """Wait until sound and words can flow. Raises ConnectionError, within a bounded time."""
        await self.ice.join()
        self._dtls._set_role("client" if self._setup == "active" else "server")
        fingerprints = [RTCDtlsFingerprint(*each) for each in self._offer.transport.fingerprints]
        try:
            async with asyncio.timeout(DTLS_S):
                await self._dtls.start(RTCDtlsParameters(fingerprints=fingerprints))
        except TimeoutError:
            raise ConnectionError("the DTLS handshake takes too long") from None
        if self._dtls.state != "connected":
            raise ConnectionError("the DTLS handshake failed")
        audio = next(section for section in self._offer.sections if section.kind == "audio")
        self._receiver.register(self._dtls, self._offer.payload_type, audio.mid)
        self._sender.start(self._offer.payload_type)
        if any(section.kind == "application" for section in self._offer.sections):
            self._sctp = _Sctp(self._dtls, self)
            self._sctp.on("datachannel", self._channel_opened)
            await self._sctp.start(RTCSctpCapabilities(maxMessageSize=BUFFERED_BYTES), self._offer.sctp_port)

    def send(self, payload: bytes) -> None:
        """An Opus packet of 20 ms, one a tick."""
        self._sender.send(payload)

    def say(self, text: str) -> bool:
        """Send a message to the page; False when it can't be taken now."""
        channel = self._channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > BUFFERED_BYTES:
            return False
        channel.send(text)
        return True

    @property
    def all_said(self) -> bool:
        """No message waits to be sent."""
        return self._channel is None or self._channel.readyState != "open" or not self._channel.bufferedAmount

    def takes(self, size: int, bucket: Bucket) -> bool:
        """Whether so much of the page's is taken."""
        if self._closing is not None:
            return False
        self.ice.alive()
        if bucket.take(size, self._loop.time()):
            return True
        self._page.misused(self, "too much was sent on the data channel")
        return False

    async def close(self) -> None:
        """Tell the browser, and free all of it. Bounded; idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._sender.stop()
                if self._sctp is not None:
                    await self._sctp.stop()
                await self._dtls.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.ice.close()

    def _render(self, offer: Offer, ours: Transport) -> str:
        self._offer = offer
        return render_answer(offer, replace(ours, fingerprints=self._fingerprints), self._setup, self._id,
                             MESSAGE_BYTES, self._sender.ssrc)

    def _channel_opened(self, channel: RTCDataChannel) -> None:
        self._channels += 1
        if self._channels > CHANNELS:
            self._page.misused(self, "too many data channels")
        elif channel.label == LABEL and self._channel is None:
            self._channel = channel
            channel.on("message", lambda message: self._page.message(self, message))
            self._page.channel_opened(self)
