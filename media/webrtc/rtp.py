"""RTP of one browser's sound, both ways, and its reports (RFC 3550), on aiortc's DTLS transport.

aiortc's own sender encodes in stereo at 96 kbit/s, its receiver keeps 80 ms and never conceals; these two take their
places at its transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable

from aiortc import RTCDtlsTransport, RTCRtpCodecParameters
from aiortc import clock as ntp
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters, RTCRtpSendParameters
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import (
    AnyRtcpPacket,
    RtcpReceiverInfo,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    RtpPacket,
)

from media.webrtc.jitter import TICK
from media.webrtc.sdp import OPUS_RATE

REPORT_EVERY_S = 1.0
PACKETS_WAITING = 10  # to be sent, while a relay doesn't take them; the next drops the oldest
CNAME = b"tandem"


class Receiver:
    """What RTCDtlsTransport needs of a receiver; a packet of the sound goes to `received` as it comes."""

    def __init__(self, received: Callable[[int, bytes], None], alive: Callable[[], None]) -> None:
        """`received` is called with a packet's timestamp and payload, `alive` whenever one proves its sender."""
        self._received = received
        self._alive = alive
        self._ssrc: int | None = None
        self._statistics: StreamStatistics | None = None

    def register(self, dtls: RTCDtlsTransport, payload_type: int, mid: str) -> None:
        codec = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=OPUS_RATE, channels=2, payloadType=payload_type)
        dtls._register_rtp_receiver(self, RTCRtpReceiveParameters(codecs=[codec], muxId=mid))

    def report(self) -> list[RtcpReceiverInfo]:
        statistics = self._statistics
        if statistics is None or self._ssrc is None or statistics.max_seq is None:
            return []
        return [RtcpReceiverInfo(
            ssrc=self._ssrc, fraction_lost=statistics.fraction_lost, packets_lost=statistics.packets_lost,
            highest_sequence=statistics.cycles + statistics.max_seq & 0xFFFFFFFF, jitter=statistics.jitter,
            lsr=0, dlsr=0)]

    # what RTCDtlsTransport calls

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        self._alive()
        if packet.ssrc != self._ssrc:
            self._ssrc, self._statistics = packet.ssrc, StreamStatistics(OPUS_RATE)
        assert self._statistics is not None
        self._statistics.add(packet)
        self._received(packet.timestamp, packet.payload)

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        self._alive()

    def _handle_disconnect(self) -> None:
        pass  # the transport's state tells


class Sender:
    """Opus packets, one a tick, and once a second a report on both directions."""

    def __init__(self, dtls: RTCDtlsTransport, receiver: Receiver) -> None:
        self._dtls = dtls
        self._receiver = receiver
        self.ssrc = secrets.randbits(32)
        self._payload_type = 0
        self._sequence = secrets.randbits(15)  # the lower half, so that SRTP's rollover can't be guessed wrong
        self._timestamp = secrets.randbits(32)
        self._packets = self._octets = 0
        self._waiting: deque[bytes] = deque(maxlen=PACKETS_WAITING)
        self._wake = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._reported_at = 0.0
        self._loop = asyncio.get_running_loop()

    def start(self, payload_type: int) -> None:
        self._payload_type = payload_type
        self._dtls._register_rtp_sender(self, RTCRtpSendParameters())  # type: ignore[arg-type]
        self._sending = asyncio.create_task(self._send())

    def send(self, payload: bytes) -> None:
        """The next 20 ms; none while `payload` is empty, or nothing is connected, but time passes."""
        self._timestamp = (self._timestamp + TICK) & 0xFFFFFFFF
        if not payload or self._sending is None:
            return
        packet = RtpPacket(payload_type=self._payload_type, sequence_number=self._sequence, timestamp=self._timestamp,
                           ssrc=self.ssrc, payload=payload)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._packets += 1
        self._octets += len(payload)
        self._waiting.append(packet.serialize())
        if self._loop.time() - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = self._loop.time()
            self._waiting.append(self._report())
        self._wake.set()

    async def stop(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sending
            self._dtls._unregister_rtp_sender(self)  # type: ignore[arg-type]

    def _report(self) -> bytes:
        info = RtcpSenderInfo(
            ntp_timestamp=ntp.current_ntp_time(), rtp_timestamp=self._timestamp,
            packet_count=self._packets & 0xFFFFFFFF, octet_count=self._octets & 0xFFFFFFFF)
        names = RtcpSdesPacket(chunks=[RtcpSourceInfo(ssrc=self.ssrc, items=[(1, CNAME)])])
        return bytes(RtcpSrPacket(self.ssrc, info, self._receiver.report())) + bytes(names)

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionError):  # then the connection is over
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._dtls._send_rtp(self._waiting.popleft())

    # what RTCDtlsTransport calls

    @property
    def _ssrc(self) -> int:
        return self.ssrc

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        pass  # a browser's reports on what we send
