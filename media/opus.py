"""Opus at 20 ms, mono (RFC 6716): the encoder takes our 24 kHz as they are, the decoder's 48 kHz are halved here, for
FFmpeg gives them whatever is asked of it."""

from __future__ import annotations

from fractions import Fraction

import av

from media.audio import BYTES_PER_SAMPLE, CHUNK, SAMPLE_RATE, Samples, from_pcm16
from media.resample import Halver

BIT_RATE = 32_000
COMPLEXITY = "5"  # of 10: a third of the time, and at this rate the ear can't tell
DECODED_RATE = 48_000


class Encoder:
    """Our 20 ms -> one Opus packet."""

    def __init__(self) -> None:
        self._codec = av.CodecContext.create("libopus", "w")
        assert isinstance(self._codec, av.AudioCodecContext)
        self._codec.bit_rate = BIT_RATE
        self._codec.format = "s16"
        self._codec.layout = "mono"
        self._codec.sample_rate = SAMPLE_RATE
        self._codec.time_base = Fraction(1, SAMPLE_RATE)
        self._codec.options = {"application": "lowdelay", "frame_duration": "20", "compression_level": COMPLEXITY}
        self._at = 0

    def encode(self, chunk: bytes) -> bytes:
        """`chunk` as s16le[CHUNK]; empty where the codec gives nothing yet."""
        frame = av.AudioFrame(format="s16", layout="mono", samples=CHUNK)
        frame.planes[0].update(chunk)
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self._at
        self._at += CHUNK
        return b"".join(bytes(packet) for packet in self._codec.encode(frame))


class Decoder:
    """Opus packets -> our samples."""

    def __init__(self) -> None:
        self._codec = av.CodecContext.create("libopus", "r")
        assert isinstance(self._codec, av.AudioCodecContext)
        self._codec.format = "s16"
        self._codec.layout = "mono"
        self._codec.sample_rate = DECODED_RATE
        self._halver = Halver()

    def decode(self, payload: bytes) -> Samples | None:
        """None for what can't be decoded."""
        try:
            frames = self._codec.decode(av.Packet(payload))
        except av.FFmpegError:
            return None
        if not frames:
            return None
        pcm = b"".join(bytes(frame.planes[0])[:frame.samples * BYTES_PER_SAMPLE] for frame in frames)
        return self._halver(from_pcm16(pcm))
