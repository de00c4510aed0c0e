"""What a caller hears before the answer, where somebody wants them to: a sound file, over and over, or a tone."""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from pathlib import Path

import numpy as np

from media.audio import CHUNK_BYTES, SAMPLE_RATE, SILENT_CHUNK, AudioError, read_audio, to_pcm16

log = logging.getLogger(__name__)

TONE_HZ, TONE_S, PERIOD_S, LEVEL = 425, 1.0, 5.0, 0.1  # as it rings in most of Europe (ITU-T E.180)
LONGEST_S = 600.0  # of a file


class WaitingSound:
    """A sip.port_pool.Sound that says the same over and over, and takes nothing."""

    def __init__(self, pcm: bytes) -> None:
        self._pcm = pcm + bytes(-len(pcm) % CHUNK_BYTES)
        self._at = 0

    def wanted(self) -> bytes:
        chunk = self._pcm[self._at:self._at + CHUNK_BYTES] or SILENT_CHUNK
        self._at = (self._at + CHUNK_BYTES) % max(len(self._pcm), CHUNK_BYTES)
        return chunk

    def received(self, chunk: bytes | None) -> None:
        pass


async def waiting_sound(path: str) -> WaitingSound:
    """Of this file, or the tone where it is none or can't be read."""
    if path:
        try:
            return WaitingSound(await asyncio.to_thread(_of_file_now, Path(path)))
        except (AudioError, OSError) as error:
            log.error("the sound for callers who wait: %s", error)
    return WaitingSound(_tone())


def _of_file_now(path: Path) -> bytes:
    return _of_file(path, path.stat().st_mtime_ns)


@cache
def _of_file(path: Path, changed_ns: int) -> bytes:
    return to_pcm16(read_audio(path)[:round(LONGEST_S * SAMPLE_RATE)])


@cache
def _tone() -> bytes:
    at = np.arange(round(PERIOD_S * SAMPLE_RATE)) / SAMPLE_RATE
    return to_pcm16(np.where(at < TONE_S, LEVEL * np.sin(2 * np.pi * TONE_HZ * at), 0.0).astype(np.float32))
