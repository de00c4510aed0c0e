"""An operator's browser on a call that runs, wherever its bridge is: hears both sides, and talks when they take over.

    /tap ──▶ TapLink ──▶ both sides mixed ──▶ Playout ──▶ 20 ms ──▶ Peer ──▶ browser
         ◀──         ◀── 20 ms, while they talk ◀── PacketListener ◀──  ◀──
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import numpy as np
import numpy.typing as npt
from aiortc import RTCCertificate

from calls.taps import RENEWED_WITHIN_S, Grant, Talks
from media.audio import CHUNK_S, SILENT_CHUNK
from media.opus import Encoder
from media.playout import IN_HAND, IN_HAND_SHAKY, Playout
from media.tap_link import HeardFrame, TapLink, TapLost
from media.webrtc.ice import IceSettings
from media.webrtc.limits import Bucket
from media.webrtc.peer import MESSAGE_BYTES, Peer
from media.webrtc.sdp import Offer
from media.webrtc.sound import Listener as PacketListener

log = logging.getLogger(__name__)

LOST_S = 6.0  # without a sign of the browser; then the operator is gone, and hands back
WATCH_EVERY_S = 0.25
GOODBYE_S = 0.5
LATEST_TICK_S = 1.0  # behind its time; then the clock's schedule begins anew
MESSAGES_PER_S, MESSAGES_AT_ONCE = 5, 50


class OperatorLine:
    """From an operator's offer to the end of their listening, on the loop."""

    def __init__(self, grant: Grant, offer: Offer, certificate: RTCCertificate, ice: IceSettings) -> None:
        self.grant = grant
        self._loop = asyncio.get_running_loop()
        self._peer = Peer(offer, self, certificate, ice)
        self._link: TapLink | None = None
        self._packets, self._encoder = PacketListener(), Encoder()
        self._playout = Playout(in_hand=IN_HAND_SHAKY, least=IN_HAND)  # two clocks: the call's and ours
        self._talking = False
        self._over = asyncio.Event()
        self._reason = ""
        self._alive_at = self._renewed_at = self._loop.time()
        self._bucket = Bucket(MESSAGES_PER_S, MESSAGES_AT_ONCE)

    async def open(self, url: str, grant: str) -> str:
        """Join the call at its bridge; the answer for the browser. Raises TapLost, OSError; then nothing is open."""
        try:
            self._link = await TapLink.open(url, grant)
            return await self._peer.answer()
        except BaseException:
            await self._close()
            raise

    async def run(self) -> None:
        """Until the call is over, or the operator gone."""
        try:
            await self._run()
        except Exception as error:  # noqa: BLE001 - a task's edge, logged: what a browser sends may fail anywhere in aiortc
            log.warning("an operator's connection fails: %s: %s", type(error).__name__, error)
            self.end("the connection failed")
        finally:
            await self._say_goodbye()
            await self._close()

    def renew(self) -> bool:
        """They may still listen; whether they do."""
        self._renewed_at = self._loop.time()
        return not self._over.is_set()

    def end(self, reason: str) -> None:
        """`reason` is for the operator to read."""
        self._reason = self._reason or reason
        self._over.set()

    async def _run(self) -> None:
        await self._peer.connect()
        self.alive(self._peer)
        tasks = [asyncio.create_task(work) for work in (self._tick(), self._hear(), self._watch(), self._over.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what has failed
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick(self) -> None:
        """Every 20 ms of an absolute schedule a piece each way."""
        assert self._link is not None
        due = self._loop.time()
        while True:
            self._peer.send(self._encoder.encode(self._playout.pop(self._loop.time())))
            said = self._packets.tick()
            if self._talking:
                self._link.say(said.chunk or SILENT_CHUNK)
            due += CHUNK_S
            if due < self._loop.time() - LATEST_TICK_S:
                due = self._loop.time()
            await asyncio.sleep(max(0.0, due - self._loop.time()))

    async def _hear(self) -> None:
        """The call, as it comes."""
        assert self._link is not None
        try:
            async for message in self._link.messages():
                match message:
                    case HeardFrame(k, heard, said):
                        self._playout.push(k, mixed(heard, said), self._loop.time())
                    case Talks(on):
                        self._talking = on
                        self._say_state()
        except TapLost as lost:
            self.end(str(lost))
        else:
            self.end("the call is over")

    async def _watch(self) -> None:
        while self._peer.connected:
            await asyncio.sleep(WATCH_EVERY_S)
            now = self._loop.time()
            if now - self._alive_at > LOST_S:
                self.end("the browser is gone")
                return
            if now - self._renewed_at > RENEWED_WITHIN_S:
                self.end("nobody said that you may still listen")
                return
        self.end("the browser is gone")

    async def _say_goodbye(self) -> None:
        self._peer.say(json.dumps({"type": "state", "state": "ended", "reason": self._reason}))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                while self._peer.connected and not self._peer.all_said:  # noqa: ASYNC110 - the channel tells nobody
                    await asyncio.sleep(CHUNK_S)

    async def _close(self) -> None:
        if self._link is not None:
            await self._link.close()
        await self._peer.close()
        with contextlib.suppress(AttributeError):
            del self._packets, self._encoder  # with them go FFmpeg's threads, not when garbage is collected

    def _say_state(self) -> None:
        self._peer.say(json.dumps({"type": "state", "state": "talking" if self._talking else "listening"}))

    # what a peer connection calls

    def sound(self, peer: Peer, timestamp: int, payload: bytes) -> None:
        if not self._over.is_set():
            self._packets.push(timestamp, payload)

    def message(self, peer: Peer, message: str | bytes) -> None:
        """Of the page's: it hangs up; anything else is ignored, too many or too large ones end the connection."""
        if not self._bucket.take(1, self._loop.time()) or len(message) > MESSAGE_BYTES:
            self.misused(peer, "too many messages, or too large ones")
            return
        with contextlib.suppress(ValueError, RecursionError):
            if json.loads(message) == {"type": "hangup"}:
                self.end("you left")

    def channel_opened(self, peer: Peer) -> None:
        self._say_state()

    def misused(self, peer: Peer, how: str) -> None:
        self.end(f"the page misbehaves: {how}")

    def alive(self, peer: Peer) -> None:
        self._alive_at = self._loop.time()


def mixed(heard: bytes, said: bytes) -> bytes:
    """Both sides in one, s16le."""
    both = np.frombuffer(heard, "<i2").astype(np.int32) + np.frombuffer(said, "<i2")
    clipped: npt.NDArray[np.int32] = both.clip(-32768, 32767)
    return clipped.astype("<i2").tobytes()
