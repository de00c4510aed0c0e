"""Sound as the wire has it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


def to_s16le(pcm: Samples) -> bytes:
    """Float samples, clipped to [-1, 1), as 16-bit little-endian; the inverse of `from_s16le`, bit for bit."""
    return np.rint(pcm * 32768).clip(-32768, 32767).astype("<i2").tobytes()


def from_s16le(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2").astype(np.float32) * np.float32(1 / 32768)
