"""A browser's sound: Opus both ways at 20 ms, what is lost concealed (RFC 6716, 7587).

    packet ──▶ JitterBuffer ──▶ Opus ──▶ Halver ──▶ 20 ms at every tick
    20 ms ──▶ Opus, mono, low delay ──▶ packet

FFmpeg's decoder conceals nothing, so it is done here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from media.audio import CHUNK, SAMPLE_RATE, Samples, to_pcm16
from media.opus import Decoder
from media.playout import QUIET_RMS
from media.webrtc.jitter import JitterBuffer, JitterCounts, Missing, Packet

STOPPED = 5  # ticks without anything, after which the next packet isn't expected any more

_COMPARED = CHUNK  # samples that are compared to find the pitch
_SHORTEST_PITCH, _LONGEST_PITCH = SAMPLE_RATE // 400, SAMPLE_RATE // 66  # 2.5 and 15 ms
_FULL_TONE, _FADED = SAMPLE_RATE // 100, 6 * SAMPLE_RATE // 100  # a gap is filled, fades from 10 ms on, ends at 60 ms
_BLEND = SAMPLE_RATE // 250  # 4 ms


class Concealer:
    """Fills gaps: the last pitch period goes on, fades and is silent after 60 ms (after ITU-T G.711, appendix I)."""

    def __init__(self) -> None:
        self._heard: Samples = np.zeros(_COMPARED + _LONGEST_PITCH, np.float32)
        self._cycle: Samples | None = None
        self._made = 0  # samples since the gap began

    @property
    def faded(self) -> bool:
        """The gap is so long that there is only silence."""
        return self._cycle is not None and self._made >= _FADED

    def heard(self, samples: Samples) -> Samples:
        """What came; after a gap its begin is blended with what filled it."""
        if self._cycle is not None:
            blend = min(_BLEND, samples.size)
            going_on = self._going_on(blend)
            rising = np.linspace(0, 1, blend, endpoint=False, dtype=np.float32)
            samples = samples.copy()
            samples[:blend] = rising * samples[:blend] + (1 - rising) * going_on
            self._cycle, self._made = None, 0
        self._heard = np.concatenate([self._heard, samples])[-self._heard.size:]
        return samples

    def missing(self, count: int) -> Samples:
        """What fills the next `count` samples."""
        if self._cycle is None:
            self._cycle, self._made = self._heard[-_pitch(self._heard):].copy(), 0
        return self._going_on(count)

    def _going_on(self, count: int) -> Samples:
        assert self._cycle is not None
        at = self._made + np.arange(count)
        self._made += count
        fading = 1 - (at - _FULL_TONE) / np.float32(_FADED - _FULL_TONE)
        made: Samples = self._cycle[at % self._cycle.size] * fading.clip(0, 1).astype(np.float32)
        return made


def _pitch(recent: Samples) -> int:
    """The lag, in samples, at which the last 20 ms look most like what came before them."""
    now = recent[-_COMPARED:]
    windows = np.lib.stride_tricks.sliding_window_view(recent, _COMPARED)
    before = windows[-1 - _LONGEST_PITCH:-_SHORTEST_PITCH]  # [lags, compared], the longest lag first
    likeness = (before @ now) / np.sqrt((before * before).sum(axis=1) + 1e-6)
    return _LONGEST_PITCH - int(np.argmax(likeness))


class Piece(NamedTuple):
    """20 ms of the caller's; None is silence. `concealed`: nothing came for at least a part of it."""

    chunk: bytes | None
    concealed: bool


class Listener:
    """The caller's packets, as they come -> a piece at every tick."""

    def __init__(self, counts: JitterCounts | None = None) -> None:
        self._buffer = JitterBuffer(counts)
        self._decoder = Decoder()
        self._concealer = Concealer()
        self._ready: Samples = np.zeros(0, np.float32)
        self._began = False
        self._nothing = 0  # ticks in a row for which nothing was there

    @property
    def counts(self) -> JitterCounts:
        return self._buffer.counts

    def push(self, timestamp: int, payload: bytes) -> None:
        self._began = True
        self._buffer.push(timestamp, payload)

    @property
    def is_late(self) -> bool:
        """The packet that is due isn't there, and should be: it may be worth a short wait."""
        return self._began and self._nothing < STOPPED and self._ready.size < CHUNK and not self._buffer.queued

    def tick(self) -> Piece:
        """The next 20 ms."""
        if not self._began:
            return Piece(None, concealed=True)
        concealed = False
        while self._ready.size < CHUNK:
            due = self._buffer.next()
            match due:
                case Packet(payload, samples):
                    decoded = self._decoder.decode(payload)
                    if decoded is None:
                        decoded, concealed = self._concealer.missing(samples // 2), True
                    elif self._buffer.may_shed and _quiet(decoded):
                        self._buffer.shed()
                        continue
                    else:
                        decoded = self._concealer.heard(decoded)
                case Missing(samples):
                    decoded, concealed = self._concealer.missing(samples // 2), True
                case None:
                    decoded, concealed = self._concealer.missing(CHUNK - self._ready.size), True
            self._nothing = self._nothing + 1 if due is None else 0
            self._ready = np.concatenate([self._ready, decoded])
        self._buffer.ticked()
        chunk, self._ready = self._ready[:CHUNK], self._ready[CHUNK:]
        if concealed and self._concealer.faded and not chunk.any():
            return Piece(None, concealed=True)
        return Piece(to_pcm16(chunk), concealed)


def _quiet(samples: Samples) -> bool:
    return float(np.sqrt(np.mean(samples * samples))) < QUIET_RMS
