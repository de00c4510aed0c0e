"""A browser's part of a call, by aiortc's own peer connection: says sound, keeps what it hears and is told."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import aioice.ice
import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

RATE = 48_000
PIECE = 960


def on_loopback(monkeypatch: Any) -> None:
    """aioice leaves 127.0.0.1 out when it gathers; a browser on the machine itself doesn't need it, we do."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


class Microphone(MediaStreamTrack):
    """Plays int16 samples at 48 kHz, then silence; paced."""

    kind = "audio"

    def __init__(self, samples: np.ndarray | None = None) -> None:
        super().__init__()
        self.samples = np.zeros(0, np.int16) if samples is None else samples
        self.began: float | None = None
        self.piece = 0
        self.silent = asyncio.Event()  # set: nothing is sent at all

    async def recv(self) -> av.AudioFrame:
        loop = asyncio.get_running_loop()
        while True:
            if self.began is None:
                self.began = loop.time()
            await asyncio.sleep(max(0.0, self.began + self.piece * 0.02 - loop.time()))
            at = self.piece * PIECE
            self.piece += 1
            if not self.silent.is_set():
                break
        piece = np.zeros(PIECE, np.int16)
        some = self.samples[at:at + PIECE]
        piece[:some.size] = some
        frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
        return frame


@dataclass
class WebPeer:
    """One peer connection. `heard` is what came, at 48 kHz mono, in order of arrival."""

    microphone: Microphone = field(default_factory=Microphone)
    with_channel: bool = True
    heard: list[np.ndarray] = field(default_factory=list)
    heard_at: list[float] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    connection: RTCPeerConnection = field(init=False)
    channel: RTCDataChannel | None = None
    _listening: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connection.addTrack(self.microphone)
        self.connection.on("track", self._track)
        if self.with_channel:
            self.channel = self.connection.createDataChannel("tandem")
            self.channel.on("message", lambda text: self.told.append(json.loads(text)))

    def _track(self, track: MediaStreamTrack) -> None:
        self._listening = asyncio.ensure_future(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame)
                samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).mean(axis=1)
                self.heard.append(samples.astype(np.int16))
                self.heard_at.append(time.monotonic())
        except MediaStreamError:
            pass

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def take(self, answer: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def connected(self, timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while self.connection.connectionState != "connected":
                assert self.connection.connectionState not in ("failed", "closed")
                await asyncio.sleep(0.01)
            while self.channel is not None and self.channel.readyState != "open":
                await asyncio.sleep(0.01)

    def say(self, **message: object) -> None:
        assert self.channel is not None
        self.channel.send(json.dumps(message))

    @property
    def words(self) -> dict[str, str]:
        """The newest text of each utterance."""
        return {told["id"]: told["text"] for told in self.told if told["type"] == "words"}

    @property
    def states(self) -> list[str]:
        return [told["state"] for told in self.told if told["type"] == "state"]

    async def vanish(self) -> None:
        """As when the network goes: nothing is said to the other side."""
        for transceiver in self.connection.getTransceivers():
            ice = transceiver.receiver.transport.transport._connection
            for protocol in list(ice._protocols):
                protocol.transport.abort()

    async def close(self) -> None:
        await self.connection.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)


@dataclass
class Http:
    """Requests as a page of `origin` makes them."""

    port: int
    origin: str | None

    async def __call__(self, method: str, path: str, body: object = None, *, bearer: str | None = None,
                       raw: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
        headers = {"Content-Type": "application/json"}
        if self.origin is not None:
            headers["Origin"] = self.origin
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        return await asyncio.to_thread(_ask, request)


def _ask(request: urllib.request.Request) -> tuple[int, Any, dict[str, str]]:
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, _content(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, _content(refused.read()), dict(refused.headers)


def _content(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data


def returned(sent: np.ndarray, peer: WebPeer) -> tuple[float, float]:
    """How much later `sent` lies in what was heard, in seconds, and how like it is."""
    heard = np.concatenate(peer.heard).astype(np.float64)
    said = sent.astype(np.float64)
    size = 1 << (heard.size + said.size).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)), size)
    lag = int(likeness[:heard.size].argmax())
    length = min(said.size, heard.size - lag)
    return lag / RATE, float(np.corrcoef(heard[lag:lag + length], said[:length])[0, 1])


async def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
