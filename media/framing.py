"""20 ms chunks -> numbered 80 ms frames, in phase with the worker's boundaries (pure).

A worker steps its calls together when their frames are complete at the same moment. Since a call's clock
ticks every 20 ms, the phase of its frames is chosen once, at the answer: frame 0 begins with as many silent
chunks as make it, and every frame after it, complete just before a boundary of the worker.

      chunks       . . s s|c c        c        c        c        c        c        c
      frame 0      [s  s   c  c]
      frame 1                  [c        c        c        c]
      worker                   ^ boundary                   ^ boundary
"""

from __future__ import annotations

from dataclasses import dataclass, field

from media.audio import CHUNK_BYTES, CHUNK_S, CHUNKS_PER_FRAME, FRAME_S, SILENT_CHUNK

TRANSIT_S = 0.004  # a complete frame's way to the worker, and what a tick may be late


@dataclass(frozen=True)
class Frame:
    """The caller's 80 ms number k."""

    k: int
    pcm: bytes  # s16le[1920]
    silent_chunks: int  # of its four: those for which nothing came, concealed or not, or that lie before the answer
    received_at: float = 0.0  # when its last chunk came, by the bridge's clock


def leading_chunks(boundary_s: float) -> int:
    """How many silent chunks frame 0 begins with: the first tick is now, a boundary is `boundary_s` away.

    The first real chunk is complete with the first tick, the others follow by 20 ms each: with n leading
    chunks the frame is complete after 3 - n ticks more. The latest moment that still reaches a boundary in
    time is taken, so a frame waits less than 20 ms for its step.
    """
    spare_s = (boundary_s - TRANSIT_S) % FRAME_S
    return CHUNKS_PER_FRAME - 1 - min(CHUNKS_PER_FRAME - 1, int(spare_s / CHUNK_S))


@dataclass
class Framer:
    """Joins chunks to frames. Every chunk of the clock goes in, None where nothing came: a muted caller makes
    frames too, so that k is the clock."""

    leading: int = 0  # silent chunks before the first one; 0 to 3
    _parts: list[bytes] = field(init=False)
    _silent: int = field(init=False)
    _k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.leading < CHUNKS_PER_FRAME:
            raise ValueError(f"frame 0 begins with 0 to 3 silent chunks, not {self.leading}")
        self._parts = [SILENT_CHUNK] * self.leading
        self._silent = self.leading

    def push(self, chunk: bytes | None, at: float = 0.0, *, concealed: bool = False) -> Frame | None:
        """Take the next 20 ms, None or a wrong size being silence; `concealed`: nothing came, `chunk` stands in for it.

        Returns the frame that they complete at `at`.
        """
        if chunk is None or len(chunk) != CHUNK_BYTES:
            chunk, concealed = SILENT_CHUNK, True
        self._silent += concealed
        self._parts.append(chunk)
        if len(self._parts) < CHUNKS_PER_FRAME:
            return None
        frame = Frame(self._k, b"".join(self._parts), self._silent, at)
        self._parts.clear()
        self._silent = 0
        self._k += 1
        return frame

    @property
    def frames(self) -> int:
        """How many frames are complete."""
        return self._k
