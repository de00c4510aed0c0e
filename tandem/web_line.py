"""A browser's call without a browser, in a process of its own: plays a file, keeps what comes back.

`python -m tandem.web_line ORDER` makes the call of the JSON `ORDER` as the demo page would and prints one line of JSON:
what was sent and what came, or {"error": …, "status": …}. Sound is raw s16le at SAMPLE_RATE; what is kept begins with
the moment at which the first packet was sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aioice.ice
import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtp import RtpPacket

from media.audio import CHUNK_BYTES, CHUNK_S, SAMPLE_RATE, SILENT_CHUNK, chunks, to_pcm16
from media.opus import Decoder, Encoder
from media.webrtc.jitter import TICK
from media.webrtc.sdp import OPUS_RATE

CONNECT_S = 15.0
ANSWER_S = 15.0

class NoCall(Exception):
    """One line that says why there was no call. `status` is the HTTP answer that refused it, where there was one."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class WebOrder:
    """Whom to call at which web role, what to play, where to keep what comes, for how long."""

    url: str
    agent: str
    play: str | None
    record: str
    seconds: float


@dataclass
class _Heard:
    """What came, by its place in the stream."""

    first_at: float = 0.0
    first_timestamp: int = 0
    payloads: list[tuple[int, bytes]] = field(default_factory=list)  # each with its place, in 20 ms
    sequences: set[int] = field(default_factory=set)

    def pcm(self, since: float) -> bytes:
        """From the moment `since` on; silence where nothing came. Decoded only now: a call is to cost little."""
        decoder = Decoder()
        pieces = {place: to_pcm16(np.asarray(decoded, np.float32)) for place, payload in self.payloads
                  if (decoded := decoder.decode(payload)) is not None}
        if not pieces:
            return b""
        before = max(0, round((self.first_at - since) * SAMPLE_RATE)) * 2
        return bytes(before) + b"".join(pieces.get(at, SILENT_CHUNK) for at in range(max(pieces) + 1))

    @property
    def lost(self) -> int:
        return (max(self.sequences) - min(self.sequences) + 1 - len(self.sequences)) if self.sequences else 0


class _Microphone(MediaStreamTrack):
    """The file, then silence, a packet every 20 ms of an absolute schedule."""

    kind = "audio"

    def __init__(self, chunks: list[bytes]) -> None:
        super().__init__()
        self._chunks, self._encoder = chunks, Encoder()
        self.sent, self.began = 0, 0.0

    async def recv(self) -> Any:
        number, self.sent = self.sent, self.sent + 1
        self.began = self.began or time.monotonic()
        await asyncio.sleep(max(0.0, self.began + number * CHUNK_S - time.monotonic()))
        chunk = self._chunks[number] if number < len(self._chunks) else SILENT_CHUNK
        packet = av.Packet(self._encoder.encode(chunk.ljust(CHUNK_BYTES, b"\0")))
        packet.pts, packet.time_base = number * TICK, Fraction(1, OPUS_RATE)
        return packet


async def call(order: WebOrder, played: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Say these chunks of 20 ms; the call's report and what was heard. Raises NoCall."""
    microphone, heard = _Microphone(played), _Heard()
    host = urlsplit(order.url).hostname or ""
    if host in ("127.0.0.1", "localhost"):
        aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # which it leaves out by itself
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(microphone)

    async def came(packet: RtpPacket, arrival_time_ms: int) -> None:
        if not heard.sequences:
            heard.first_at, heard.first_timestamp = time.monotonic(), packet.timestamp
        heard.sequences.add(packet.sequence_number)
        heard.payloads.append(((packet.timestamp - heard.first_timestamp) // TICK, packet.payload))

    [receiver] = connection.getReceivers()
    receiver._handle_rtp_packet = came  # type: ignore[method-assign]  # no jitter buffer: what comes is kept as it is
    began = time.monotonic()
    try:
        await connection.setLocalDescription(await connection.createOffer())
        session = await _post(order, "/api/web/sessions", {"key": "demo", "agent": order.agent})
        answer = await _post(order, "/api/web/calls", {"sdp": connection.localDescription.sdp}, session["token"])
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await _until_connected(connection)
        connected = time.monotonic()
        ended_by = "us"
        while time.monotonic() - connected < order.seconds:
            if connection.connectionState in ("closed", "failed", "disconnected"):
                ended_by = "them"
                break
            await asyncio.sleep(CHUNK_S)
        seconds = time.monotonic() - connected
        if ended_by == "us":
            await _post(order, f"/api/web/calls/{answer['call']}/end", {"resume_token": answer["resume_token"]})
    finally:
        await connection.close()
    report = {"status": 200, "reason": "OK", "codec": "opus", "seconds": seconds, "hung_up_by": ended_by,
              "packets_sent": microphone.sent, "packets_received": len(heard.sequences), "packets_lost": heard.lost}
    return report, heard.pcm(microphone.began or began)


async def _until_connected(connection: RTCPeerConnection) -> None:
    try:
        async with asyncio.timeout(CONNECT_S):
            while connection.connectionState != "connected":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise NoCall(f"no connection after {CONNECT_S:g} s") from None


async def _post(order: WebOrder, path: str, body: dict[str, object], bearer: str = "") -> Any:
    address = urlsplit(order.url)
    origin = f"{address.scheme}://{address.netloc}"
    headers = {"Origin": origin, "Content-Type": "application/json"}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    request = urllib.request.Request(origin + path, json.dumps(body).encode(), headers)  # noqa: S310 - checked: http(s)

    def ask() -> bytes:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
            return bytes(answer.read())

    try:
        data = await asyncio.to_thread(ask)
    except urllib.error.HTTPError as refused:
        with refused:
            raise NoCall(f"refused with {refused.code}: {_message(refused.read())}", refused.code) from None
    except OSError as error:
        raise NoCall(f"{origin}: {getattr(error, 'reason', error)}") from None
    return json.loads(data) if data else None


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def main() -> None:
    order = WebOrder(**json.loads(sys.argv[1]))
    try:
        report, sound = asyncio.run(call(order, chunks(Path(order.play).read_bytes()) if order.play else []))
        Path(order.record).write_bytes(sound)
    except NoCall as refused:
        report = {"error": str(refused), "status": refused.status}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
