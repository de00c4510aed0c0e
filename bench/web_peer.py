"""A bare browser for measurements: Opus packets in and out of a peer connection, timed where they pass its socket."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import aioice.ice
import av
import numpy as np
import numpy.typing as npt
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtp import RtpPacket

from media.audio import CHUNK_S, to_pcm16
from media.opus import Decoder, Encoder
from media.webrtc.jitter import TICK
from media.webrtc.sdp import OPUS_RATE

CONNECT_S = 10.0

Piece = npt.NDArray[np.floating]


@dataclass
class WebTalk:
    """What was sent and what came, packet by packet. Moments are time.monotonic's."""

    sent_at: list[float] = field(default_factory=list)
    came_at: list[float] = field(default_factory=list)
    came: list[Piece] = field(default_factory=list)  # [480] each, in the order of arrival
    sequences: list[int] = field(default_factory=list)


class _Microphone(MediaStreamTrack):
    """Sends `said(n)`, the n-th 20 ms, encoded already, on an absolute schedule."""

    kind = "audio"

    def __init__(self, talk: WebTalk, said: Callable[[int], Piece]) -> None:
        super().__init__()
        self._talk, self._said = talk, said
        self._encoder = Encoder()
        self._began = 0.0

    async def recv(self) -> av.Packet:
        number = len(self._talk.sent_at)
        packet = av.Packet(self._encoder.encode(to_pcm16(self._said(number))))
        packet.pts, packet.time_base = number * TICK, Fraction(1, OPUS_RATE)
        self._began = self._began or time.monotonic()
        await asyncio.sleep(max(0.0, self._began + number * CHUNK_S - time.monotonic()))
        self._talk.sent_at.append(time.monotonic())
        return packet


async def call(port: int, agent: str, seconds: float, said: Callable[[int], Piece]) -> WebTalk:
    """Call `agent` of the Tandem whose web role is at `port`, as its demo page would, and say `said(n)` for so long."""
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out by itself
    talk, decoder = WebTalk(), Decoder()
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(_Microphone(talk, said))

    async def came(packet: RtpPacket, arrival_time_ms: int) -> None:
        talk.came_at.append(time.monotonic())
        decoded = decoder.decode(packet.payload)
        assert decoded is not None
        talk.came.append(decoded)
        talk.sequences.append(packet.sequence_number)

    [receiver] = connection.getReceivers()
    receiver._handle_rtp_packet = came  # type: ignore[method-assign]
    try:
        await connection.setLocalDescription(await connection.createOffer())
        session = await _post(port, "/api/web/sessions", {"key": "demo", "agent": agent})
        answer = await _post(port, "/api/web/calls", {"sdp": connection.localDescription.sdp}, session["token"])
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        async with asyncio.timeout(CONNECT_S):
            while connection.connectionState != "connected":
                await asyncio.sleep(0.01)
        await asyncio.sleep(seconds)
        await _post(port, f"/api/web/calls/{answer['call']}/end", {"resume_token": answer["resume_token"]})
    finally:
        await connection.close()
    return talk


async def _post(port: int, path: str, body: dict[str, object], bearer: str = "") -> Any:
    headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)

    def ask() -> bytes:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return bytes(answer.read())

    data = await asyncio.to_thread(ask)
    return json.loads(data) if data else None
