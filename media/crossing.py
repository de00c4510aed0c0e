"""The one place where a transport's clock thread and a call's asyncio loop meet.

The transport ticks every 20 ms on a thread of its own: `wanted` gives it the piece to send, `received` takes
the chunk that came. Both do a few microseconds of work, never wait for the loop and never raise. Towards the
loop go whole frames, at most FRAMES_WAITING; the next drops the oldest, counted, which leaves a gap in k.

    clock thread   wanted()  <- Playout <- push()      loop
                   received() -> Framer -> frames -> take()
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from media.audio import CHUNK_BYTES, CHUNK_S, SILENT_CHUNK
from media.framing import Frame, Framer, leading_chunks
from media.playout import IN_HAND_SHAKY, Counts, Heard, Playout
from media.recorder import Taped
from media.taps import Voice

log = logging.getLogger(__name__)

FRAMES_WAITING = 3
TAPE_WAITING = 500  # pieces, 10 s, of both sides; then the loop has stood still, and the oldest are lost


@dataclass(frozen=True)
class Began:
    """The call's clock began: its sample 0 was at `unix_s`, `leading` chunks before the first tick."""

    unix_s: float
    leading: int


class Crossing:
    """A call's two streams; frames should be complete just before `boundary_at`, a moment by `monotonic`.

    `notify` is called on the loop when frames wait; it should call `take` and `take_heard`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, notify: Callable[[], None], boundary_at: float, *,
        monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._notify = notify
        self._boundary_at = boundary_at
        self._monotonic = monotonic
        self._wall = wall
        self._frames: deque[Frame] = deque(maxlen=FRAMES_WAITING)
        self._lock = threading.Lock()  # guards the playout, and the framer's and the playout's beginning
        self._framer: Framer | None = None
        self._playout: Playout | None = None
        self._closed = False
        self._failed = False
        self._tape: deque[Taped] = deque(maxlen=TAPE_WAITING)
        self._now = (0, SILENT_CHUNK, False)  # of this tick: its number, what is heard, if by an operator
        self._voice: Voice | None = None  # an operator's, in the agent's place
        self.began: Began | None = None
        self.dropped = 0

    # on the clock thread

    def wanted(self) -> bytes:
        """The 20 ms that the caller hears next. The first call begins the call's clock."""
        try:
            with self._lock:
                if self._closed:
                    return SILENT_CHUNK
                playout = self._playout or self._begin()
                tick, agents, voice = playout.tick, playout.pop(self._monotonic()), self._voice
                self._now = tick, agents if voice is None else voice.pop(), voice is not None
                return self._now[1]
        except Exception:  # noqa: BLE001 - the clock thread's edge, logged
            self._fail()
            return SILENT_CHUNK

    def received(self, chunk: bytes | None, *, concealed: bool = False) -> None:
        """The 20 ms that the caller said, None for silence; of the same tick as the `wanted` before it.

        `concealed`: nothing came, `chunk` stands in for it.
        """
        try:
            if self._framer is None or self._closed:
                return
            if chunk is None or len(chunk) != CHUNK_BYTES:
                chunk = None
            tick, heard, by_operator = self._now
            self._tape.append(Taped(tick, heard, chunk or SILENT_CHUNK, by_operator))
            frame = self._framer.push(chunk, self._monotonic(), concealed=concealed)
            if frame is not None:
                waiting = len(self._frames)
                self.dropped += waiting == FRAMES_WAITING
                self._frames.append(frame)
                if not waiting:  # else the loop has been told already and hasn't come to it
                    self._loop.call_soon_threadsafe(self._notify)
        except RuntimeError:  # the loop is closed: the process ends
            self._closed = True
        except Exception:  # noqa: BLE001 - the clock thread's edge, logged
            self._fail()

    def _begin(self) -> Playout:
        leading = leading_chunks(self._boundary_at - self._monotonic())
        self.began = Began(self._wall() - leading * CHUNK_S, leading)
        self._framer = Framer(leading)
        self._playout = Playout(leading, in_hand=IN_HAND_SHAKY)
        return self._playout

    def _fail(self) -> None:
        """The clock thread's edge: a fault of ours is logged once, and the caller hears silence."""
        if not self._failed:
            self._failed = True
            log.exception("a media callback failed")

    # on the loop

    def take(self) -> list[Frame]:
        """The caller's frames that are complete, oldest first."""
        frames = []
        while self._frames:
            frames.append(self._frames.popleft())
        return frames

    def push(self, k: int, pcm: bytes) -> bool:
        """Queue the agent's frame k to be heard; see Playout.push."""
        with self._lock:
            return self._playout is not None and self._playout.push(k, pcm, self._monotonic())

    def speak_for_agent(self, voice: Voice | None) -> None:
        """The caller hears this voice from the next tick on, and nothing of the agent's; None: the agent again."""
        with self._lock:
            self._voice = voice

    def take_heard(self) -> list[Heard]:
        with self._lock:
            return self._playout.take_heard() if self._playout else []

    def take_tape(self) -> list[Taped]:
        """Both sides since the last time; at most the last TAPE_WAITING pieces."""
        pieces: list[Taped] = []
        while self._tape:
            pieces.append(self._tape.popleft())
        return pieces

    def finish(self) -> None:
        """No frame of the agent's comes any more."""
        with self._lock:
            if self._playout:
                self._playout.finish()

    def close(self) -> None:
        """Silence from here on, and nothing more is taken."""
        with self._lock:
            self._closed = True

    @property
    def drained(self) -> bool:
        """All that was pushed has been heard."""
        with self._lock:
            return self._playout is None or self._playout.queued == 0

    @property
    def ticks(self) -> int:
        """Pieces of the call's clock so far, the leading ones included."""
        with self._lock:
            return self._playout.tick if self._playout else 0

    @property
    def frames_made(self) -> int:
        """The caller's frames so far, whatever became of them."""
        return self._framer.frames if self._framer else 0

    @property
    def counts(self) -> Counts:
        with self._lock:
            return self._playout.counts if self._playout else Counts()
