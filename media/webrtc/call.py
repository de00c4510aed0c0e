"""One call of a browser's: a session, its clock, and the peer connection that carries it just now.

    offer ──▶ Session.prepare ──▶ answer ──▶ connected ──▶ clock, 20 ms ──▶ Session.over ──▶ ended
                 └── Refusal        later offers: the same session goes on over another connection

The clock is ours: it ticks whether anything comes or not, and while the network is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime

from aiortc import RTCCertificate

from calls.events import EndReason, Envelope, Event, UtteranceSpoken
from calls.routing import Refusal
from calls.state import State
from media.audio import CHUNK_S, SILENT_CHUNK
from media.crossing import Crossing
from media.opus import Encoder
from media.session import Events, Session
from media.webrtc.ice import IceSettings
from media.webrtc.limits import Bucket
from media.webrtc.peer import MESSAGE_BYTES, Peer
from media.webrtc.sdp import Offer
from media.webrtc.sound import Listener, Piece

log = logging.getLogger(__name__)

RESUME_WITHIN_S = 10.0  # without a sign of the browser; then the call is over
AWAY_AFTER_S = 2.0  # without one, after which the page is told that its sound doesn't arrive
FIRST_CONNECTION_S = 20.0  # from the answer
WATCH_EVERY_S = 0.25
FIRST_PACKET_S = 0.1  # for which the clock waits
LATE_S = 0.012  # that a packet may come after its tick
GOODBYE_S = 0.5  # at the end, for the last message to leave
LATEST_TICK_S = 1.0  # behind its time; then the clock's schedule begins anew
UTTERANCES_KEPT = 50  # to be told again to a page that comes back
MESSAGES_PER_S, MESSAGES_AT_ONCE = 5, 50


class CallOver(Exception):
    """There is nothing to come back to."""


class Overheard:
    """Events on their way to Redis; a call's utterances are told to `listen` too."""

    def __init__(self, events: Events, listen: Callable[[UtteranceSpoken], None]) -> None:
        self._events = events
        self._listen = listen

    @property
    def full(self) -> bool:
        return self._events.full

    def emit(self, call: str, fence: int, event: Event, at: datetime | None = None) -> Envelope:
        if isinstance(event, UtteranceSpoken):
            self._listen(event)
        return self._events.emit(call, fence, event, at)


class Words:
    """What the page is told of who says what: every utterance by its id, in its newest form."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._unsaid: OrderedDict[str, str] = OrderedDict()

    def spoken(self, utterance: UtteranceSpoken) -> None:
        id = f"{utterance.speaker.value}:{utterance.first_k}"
        self._kept[id] = self._unsaid[id] = json.dumps({
            "type": "words", "id": id, "speaker": utterance.speaker.value, "text": utterance.text,
            "final": utterance.final, "at_s": round(utterance.words[0].start_s, 2)}, ensure_ascii=False)
        for some in (self._kept, self._unsaid):
            if len(some) > UTTERANCES_KEPT:
                some.popitem(last=False)

    def all_again(self) -> None:
        """A page that may have forgotten everything listens."""
        self._unsaid = self._kept.copy()

    def say(self, peer: Peer) -> None:
        """As much as `peer` takes now."""
        while self._unsaid and peer.say(next(iter(self._unsaid.values()))):
            self._unsaid.popitem(last=False)


class WebCall:
    """A call from its offer to its end, on the loop."""

    session: Session  # set before `serve`; its events pass by `spoken`

    def __init__(self, certificate: RTCCertificate, ice: IceSettings) -> None:
        self._certificate = certificate
        self._ice = ice
        self._loop = asyncio.get_running_loop()
        self._peer: Peer | None = None  # the one that is connected
        self._coming: tuple[Peer, asyncio.Task[None]] | None = None  # answered, not connected yet
        self._connected = asyncio.Event()
        self._came = asyncio.Event()  # a packet of sound, since the event was last cleared
        self._listener = Listener()
        self._encoder = Encoder()
        self._words = Words()
        self._muted = False
        self._away = False
        self._heard_at = self._loop.time()
        self._bucket = Bucket(MESSAGES_PER_S, MESSAGES_AT_ONCE)
        self._ignored = 0
        self._closing: set[asyncio.Task[None]] = set()  # connections that have been replaced
        self._resuming = asyncio.Lock()

    def spoken(self, utterance: UtteranceSpoken) -> None:
        self._words.spoken(utterance)
        if self._peer is not None:
            self._words.say(self._peer)

    async def serve(self, offer: Offer, answered: Callable[[str | Refusal], None]) -> None:
        """The call's whole life. `answered` is told the answer, or why there is none; at most once."""
        try:
            await self._serve(offer, answered)
        except OSError as error:
            log.error("call %s: %s", self.session.call, error)
            self.session.end(EndReason.FAILED, str(error))
        finally:
            await asyncio.gather(self._hang_up(), self.session.close())

    async def resume(self, offer: Offer) -> str:
        """The answer to a later offer: an ICE restart, or a wholly new connection. Raises CallOver, OSError."""
        async with self._resuming:
            if self.session.state not in (State.READY, State.TALKING):
                raise CallOver
            await self._leave_coming()
            peer = self._peer
            if peer is not None and peer.connected and peer.is_same(offer):
                answer = await peer.restart(offer)
                self._coming = peer, asyncio.create_task(self._join(peer, peer.rejoin))
            else:
                answer = await self._answer(Peer(offer, self, self._certificate, self._ice))
            if self.session.has_ended:  # meanwhile: nobody else closes what has just been opened
                await self._leave_coming()
                raise CallOver
            return answer

    def hang_up(self) -> None:
        """The page has ended the call."""
        self.session.hung_up(EndReason.CALLER_HUNG_UP)

    # the call's life

    async def _serve(self, offer: Offer, answered: Callable[[str | Refusal], None]) -> None:
        session = self.session
        try:
            if not await session.prepare():
                return
        except Refusal as refusal:
            answered(refusal)
            return
        answered(await self._answer(Peer(offer, self, self._certificate, self._ice)))
        if not await self._first_connection():
            return
        crossing = session.answered("opus")
        beside = [asyncio.create_task(self._tick(crossing)), asyncio.create_task(self._watch())]
        try:
            over = asyncio.create_task(session.over())
            done, _ = await asyncio.wait((over, *beside), return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            for task in done:
                task.result()  # raises what has failed
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _first_connection(self) -> bool:
        """Whether the browser has connected; ends the session when it doesn't in time."""
        connected = asyncio.create_task(self._connected.wait())
        over = asyncio.create_task(self.session.over())
        await asyncio.wait((connected, over), timeout=FIRST_CONNECTION_S, return_when=asyncio.FIRST_COMPLETED)
        connected.cancel()
        over.cancel()
        if not self._connected.is_set():
            self.session.hung_up(EndReason.MEDIA_LOST, "the browser never connected")
        return self._connected.is_set() and not self.session.has_ended

    async def _answer(self, peer: Peer) -> str:
        """Let `peer` take over once it is connected."""
        try:
            answer = await peer.answer()
        except BaseException:
            await peer.close()
            raise
        self._coming = peer, asyncio.create_task(self._join(peer, peer.connect))
        return answer

    async def _join(self, peer: Peer, connect: Callable[[], Awaitable[None]]) -> None:
        try:
            await connect()
        except Exception as error:  # noqa: BLE001 - a task's edge, logged: what a browser sends may fail anywhere in aiortc
            log.warning("call %s: a connection doesn't come up: %s: %s", self.session.call, type(error).__name__, error)
            if peer is not self._peer:
                self._close_later(peer)
            return
        before, self._peer = self._peer, peer
        self.alive(peer)
        if before is not peer:
            self._listener, self._encoder = Listener(self._listener.counts), Encoder()  # its streams begin anew
            if before is not None:
                log.info("call %s goes on over another connection", self.session.call)
                self._close_later(before)
        self._connected.set()

    async def _leave_coming(self) -> None:
        """Give up a connection that isn't up yet."""
        if self._coming is None:
            return
        (peer, task), self._coming = self._coming, None
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if peer is not self._peer:
                self._close_later(peer)

    def _close_later(self, peer: Peer) -> None:
        task = asyncio.create_task(peer.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _tick(self, crossing: Crossing) -> None:
        """The call's clock: every 20 ms of an absolute schedule a piece each way.

        It begins with a packet of the browser's, so that those that follow come about when their ticks do: what is
        heard is sent at the tick, what is said is taken as it comes, at most LATE_S later.
        """
        await self._packet(FIRST_PACKET_S)
        due = self._loop.time()
        while True:
            heard = crossing.wanted()
            if self._peer is not None:
                self._peer.send(self._encoder.encode(heard) if self._peer.connected else b"")
            if self._listener.is_late:
                await self._packet(LATE_S)
            said = self._listener.tick()
            if self._muted:
                said = Piece(SILENT_CHUNK, concealed=False)
            crossing.received(said.chunk, concealed=said.concealed)
            due += CHUNK_S
            left_s = due - self._loop.time()
            if left_s < -LATEST_TICK_S:
                log.warning("call %s: its clock was late by %.1f s", self.session.call, -left_s)
                due = self._loop.time()
            await asyncio.sleep(max(0.0, left_s))

    async def _packet(self, within_s: float) -> None:
        """Wait for the next packet of the browser's sound, but not longer."""
        self._came.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._came.wait()

    async def _watch(self) -> None:
        """Notices when the network is away, and when for too long."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            silent_s = self._loop.time() - self._heard_at
            if silent_s > RESUME_WITHIN_S:
                self.session.hung_up(EndReason.MEDIA_LOST, f"nothing came from the browser for {silent_s:.0f} s")
                return
            if (silent_s > AWAY_AFTER_S) is not self._away:
                self._away = not self._away
                log.info("call %s: the browser is %s", self.session.call, "away" if self._away else "back")
                self._say_state("reconnecting" if self._away else "talking")
            if self._peer is not None:
                self._words.say(self._peer)

    async def _hang_up(self) -> None:
        """Say goodbye, and close all connections."""
        reason = self.session.end_reason or EndReason.FAILED
        await self._leave_coming()
        self._say_state("ended", reason.value)
        peer = self._peer
        if peer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    while not peer.all_said:  # noqa: ASYNC110 - the channel tells nobody
                        await asyncio.sleep(CHUNK_S)
            self._close_later(peer)
        if self._closing:
            await asyncio.wait(self._closing)
        counts = self._listener.counts
        log.info("call %s: %s; packets: %d came, %d lost, %d late, %d left out; %d messages ignored",
                 self.session.call, reason.value, counts.received, counts.lost, counts.late, counts.shed, self._ignored)
        self._peer = None
        del self._listener, self._encoder  # with them go FFmpeg's threads, two a call, not when garbage is collected

    def _say_state(self, state: str, reason: str | None = None) -> None:
        if self._peer is not None:
            self._peer.say(json.dumps({"type": "state", "state": state} | ({"reason": reason} if reason else {})))

    # what a peer connection calls

    def sound(self, peer: Peer, timestamp: int, payload: bytes) -> None:
        if peer is self._peer:
            self._listener.push(timestamp, payload)
            self._came.set()

    def message(self, peer: Peer, message: str | bytes) -> None:
        """Of the page's: unknown and wrong ones are ignored and counted, too many or too large end the call."""
        if not self._bucket.take(1, self._loop.time()):
            self.misused(peer, "too many messages came")
            return
        if len(message) > MESSAGE_BYTES:
            self.misused(peer, "a message was too large")
            return
        try:
            content = json.loads(message) if isinstance(message, str) else None
        except (ValueError, RecursionError):
            content = None
        match content:
            case {"type": "hangup"}:
                self.hang_up()
            case {"type": "mute", "muted": bool(muted)}:
                self._muted = muted
            case _:
                self._ignored += 1

    def channel_opened(self, peer: Peer) -> None:
        peer.say(json.dumps({"type": "state", "state": "talking"}))
        self._words.all_again()
        self._words.say(peer)

    def misused(self, peer: Peer, how: str) -> None:
        self.session.end(EndReason.FAILED, f"the page misbehaves: {how}")

    def alive(self, peer: Peer) -> None:
        self._heard_at = self._loop.time()
