"""What the caller is about to hear: the agent's frames, late or missing ones too, as 20 ms pieces (pure).

Time is counted in pieces; there is no clock here. A transport pops one piece a tick. The agent's stream has a
position, piece 4 k + i being the i-th 20 ms of its frame k; the delay is how far that lies behind the ticks:

    ticks      0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16
    pushed               k=0         k=1         k=2
    heard      .  .  .  .  .  0  0  0  0  1  1  1  1  2  2  2  2     delay 5: one piece in hand when k=1 comes

A frame that is late makes the caller wait in silence and the delay grow; a frame that is known never to come
(a later one is here) leaves its 80 ms silent and the delay as it was. Delay that isn't needed any more is
given back by dropping whole pieces that nobody would hear: what is needed is told by how long frames wait
for their turn, so both sides say by any one clock when they come.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from media.audio import CHUNK, CHUNK_BYTES, CHUNK_S, CHUNKS_PER_FRAME, FRAME_BYTES, SILENT_CHUNK, rms

IN_HAND = 1  # pieces left when the next frame comes, in good times; none where frames wait SPARE_S all the same
IN_HAND_SHAKY = 2  # after two underruns in SHAKY_TICKS
SHAKY_TICKS = 250  # 5 s
CLEAN_TICKS = 500  # 10 s
SPARE_S = 0.01  # that every frame of CLEAN_TICKS must have waited for its turn, were there a piece less
MOST_QUEUED = 8  # pieces, 160 ms: above it quiet pieces are dropped
HARD_BOUND = 16  # pieces, 320 ms: above it the oldest frame is dropped, however loud
QUIET_RMS = 10 ** (-45 / 20)  # -45 dBFS, below which there is no speech
FADE_SAMPLES = 120  # 5 ms
HEARD_KEPT = 256  # frames whose time waits to be fetched by `take_heard`

_FADE_IN = np.linspace(0.0, 1.0, FADE_SAMPLES, endpoint=False, dtype=np.float32)
_FADE_BYTES = FADE_SAMPLES * 2


@dataclass(frozen=True)
class Heard:
    """The agent's frame k began to be heard at this sample of the call's clock."""

    k: int
    sample: int
    at: float = 0.0  # the same moment by the transport's clock


class _Queued(NamedTuple):
    k: int
    pcm: bytes
    came_at: float | None  # None: late


@dataclass
class Counts:
    underruns: int = 0  # silences in which a frame was late
    missing: int = 0  # frames that never came, or too late to be of use
    refused: int = 0  # pushed again or out of order
    shed: int = 0  # pieces dropped to give delay back


class Playout:
    """Frames in by `push`, pieces out by `pop`, one a tick; `first_tick` is where the call's clock stands.

    A call that begins with IN_HAND_SHAKY in hand has a piece less each time that CLEAN_TICKS have passed without an
    underrun, down to `least`: with none in hand a frame waits up to 20 ms for its turn, as it comes between two ticks.
    One that comes too late for that puts a piece in hand for good.
    """

    def __init__(self, first_tick: int = 0, in_hand: int = IN_HAND, least: int = 0) -> None:
        self.counts = Counts()
        self._tick = first_tick
        self._frames: deque[_Queued] = deque()  # rising k, the first may be played in part
        self._last_k = -1
        self._position: int | None = None  # the piece that is due; None until the first frame has come
        self._delay = 0  # ticks minus position when a piece was last heard
        self._hold = 0  # silent ticks before the next piece, to have enough in hand
        self._dry = False
        self._finishing = False
        self._heard: deque[Heard] = deque(maxlen=HEARD_KEPT)
        self._heard_k = -1
        # how much delay is needed
        self._in_hand, self._least = in_hand, least
        self._underran_at: deque[int] = deque(maxlen=2)
        self._clean_since = first_tick
        self._least_wait_s = math.inf  # of a frame since then
        self._to_shed = 0
        # for the fades
        self._tail = b""  # the last 5 ms of sound, when sound came last
        self._dropped_head = b""  # the first 5 ms of the piece that was dropped just now

    @property
    def tick(self) -> int:
        """How many pieces of the call's clock have been popped."""
        return self._tick

    @property
    def queued(self) -> int:
        """Pieces that wait to be heard."""
        if not self._frames or self._position is None:
            return 0
        first_k = self._frames[0].k
        return CHUNKS_PER_FRAME * len(self._frames) - max(0, self._position - CHUNKS_PER_FRAME * first_k)

    @property
    def in_hand(self) -> int:
        """How many pieces are meant to be left when the next frame comes."""
        return self._in_hand

    def push(self, k: int, pcm: bytes, at: float) -> bool:
        """Queue the agent's frame k, which came `at`; False, and nothing changes, when k isn't above the last one's.

        Raises ValueError for a frame of a wrong size.
        """
        if len(pcm) != FRAME_BYTES:
            raise ValueError(f"a frame has {FRAME_BYTES} bytes, not {len(pcm)}")
        if k <= self._last_k:
            self.counts.refused += 1
            return False
        self.counts.missing += k - self._last_k - 1
        self._last_k = k
        self._frames.append(_Queued(k, pcm, None if self._dry else at))
        if self._position is None:
            self._position = CHUNKS_PER_FRAME * k
            self._hold = self._in_hand
            self._delay = self._tick + self._hold - self._position
        elif self._dry:
            self._dry = False
            self._hold = self._in_hand - IN_HAND
        if self.queued > HARD_BOUND:
            self._drop_oldest()
        return True

    def finish(self) -> None:
        """No frame comes any more: running dry is the end from here on, no underrun."""
        self._finishing = True

    def pop(self, at: float) -> bytes:
        """The next 20 ms, wanted `at` a moment in seconds; silence when there is nothing to be heard."""
        piece = self._next(at)
        self._tick += 1
        if self._tick - self._clean_since >= CLEAN_TICKS:
            self._settle()
        return self._silence() if piece is None else self._sound(piece)

    def take_heard(self) -> list[Heard]:
        """The frames that began to be heard since the last time, in order; at most the last HEARD_KEPT."""
        heard = list(self._heard)
        self._heard.clear()
        return heard

    def _next(self, at: float) -> bytes | None:
        if self._position is None:
            return None
        if self._hold:
            self._hold -= 1
            return None
        self._skip_missing()
        self._shed(at)
        if not self._frames:
            self._run_dry()
            return None
        k, pcm, came_at = self._frames[0]
        index = self._position - CHUNKS_PER_FRAME * k
        self._position += 1
        if index < 0:  # a frame that never comes
            return None
        self._delay = self._tick - self._position + 1
        if k != self._heard_k:
            self._begin(k, at)
            if came_at is not None:
                self._least_wait_s = min(self._least_wait_s, at - came_at)
        if index == CHUNKS_PER_FRAME - 1:
            self._frames.popleft()
        return pcm[index * CHUNK_BYTES:(index + 1) * CHUNK_BYTES]

    def _begin(self, k: int, at: float) -> None:
        """The frame k is heard from now on."""
        self._heard_k = k
        self._heard.append(Heard(k, self._tick * CHUNK, at))

    def _skip_missing(self) -> None:
        """Before a gap in k: what was waited for in vain is taken off the gap, so that the delay stays."""
        if not self._frames or self._position is None:
            return
        gap = CHUNKS_PER_FRAME * self._frames[0].k - self._position
        if gap > 0:
            waited = self._tick - self._position - self._delay
            self._position += max(0, min(gap, waited))

    def _run_dry(self) -> None:
        if self._dry or self._finishing:
            return
        self._dry = True
        self.counts.underruns += 1
        self._underran_at.append(self._tick)
        self._clean_since = self._tick
        self._least_wait_s = math.inf
        self._to_shed = 0
        if self._in_hand < IN_HAND:
            self._in_hand = self._least = IN_HAND
        if len(self._underran_at) == 2 and self._tick - self._underran_at[0] <= SHAKY_TICKS:
            self._in_hand = IN_HAND_SHAKY

    def _settle(self) -> None:
        """10 s without an underrun: a piece less is kept, and what all frames waited for in vain may go."""
        self._clean_since = self._tick
        self._in_hand = max(self._least, self._in_hand - 1)
        if self._least_wait_s < math.inf:
            needed_s = max(SPARE_S, self._in_hand * CHUNK_S)
            self._to_shed = max(0, int((self._least_wait_s - needed_s) / CHUNK_S))
        self._least_wait_s = math.inf

    def _shed(self, at: float) -> None:
        """Drop the due pieces that are too many and quiet."""
        while self._frames and self._position is not None and (self._to_shed or self.queued > MOST_QUEUED):
            k, pcm, _ = self._frames[0]
            index = self._position - CHUNKS_PER_FRAME * k
            piece = pcm[index * CHUNK_BYTES:(index + 1) * CHUNK_BYTES]
            if index < 0 or rms(piece) >= QUIET_RMS:
                return
            if self.queued == 1:  # never to the point of running dry
                return
            self._drop(piece)
            if k != self._heard_k:
                self._begin(k, at)
            if index == CHUNKS_PER_FRAME - 1:
                self._frames.popleft()

    def _drop(self, piece: bytes) -> None:
        assert self._position is not None
        self._position += 1
        self._to_shed = max(0, self._to_shed - 1)
        self.counts.shed += 1
        self._dropped_head = self._dropped_head or piece[:_FADE_BYTES]

    def _drop_oldest(self) -> None:
        assert self._position is not None
        k, pcm, _ = self._frames.popleft()
        begins, end = CHUNKS_PER_FRAME * k, CHUNKS_PER_FRAME * (k + 1)
        index = max(0, self._position - begins)
        self.counts.shed += CHUNKS_PER_FRAME - index
        if k != self._heard_k:
            self.counts.missing += 1
        self._dropped_head = self._dropped_head or pcm[index * CHUNK_BYTES:][:_FADE_BYTES]
        self._position = max(self._position, end)
        self._hold = 0

    def _sound(self, piece: bytes) -> bytes:
        """The piece without a click where it doesn't follow what was heard before."""
        if not self._tail:
            piece = _faded(b"", piece)
        elif self._dropped_head:
            piece = _faded(self._dropped_head, piece)
        self._dropped_head = b""
        self._tail = piece[-_FADE_BYTES:]
        return piece

    def _silence(self) -> bytes:
        """20 ms of silence; after sound its last 5 ms, mirrored, fade away first."""
        tail, self._tail = self._tail, b""
        self._dropped_head = b""
        if not any(tail):
            return SILENT_CHUNK
        mirrored = np.frombuffer(tail, "<i2")[::-1].tobytes()
        return _faded(mirrored, SILENT_CHUNK)


def _faded(old: bytes, piece: bytes) -> bytes:
    """The piece, its first 5 ms faded over from `old` (from silence, when empty)."""
    new = np.frombuffer(piece[:_FADE_BYTES], "<i2") * _FADE_IN
    if old:
        new += np.frombuffer(old, "<i2") * (1 - _FADE_IN)
    return np.rint(new).astype("<i2").tobytes() + piece[_FADE_BYTES:]
