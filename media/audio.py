"""Rates, frame sizes, conversions, audio files: the only home of 24000 and 1920 on the bridge's side.

Live sound is bytes, s16le mono at SAMPLE_RATE: a transport's clock brings chunks of 20 ms, a worker takes and
gives frames of 80 ms. Arrays are float32 in [-1, 1).
"""

from __future__ import annotations

import math
import wave
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 24_000  # Hz
FRAME_SAMPLES = 1920  # 80 ms: one step of the model
CHUNKS_PER_FRAME = 4
CHUNK = FRAME_SAMPLES // CHUNKS_PER_FRAME  # 480 samples: 20 ms, one tick of a transport's clock
BYTES_PER_SAMPLE = 2
CHUNK_BYTES = CHUNK * BYTES_PER_SAMPLE
FRAME_BYTES = FRAME_SAMPLES * BYTES_PER_SAMPLE
CHUNK_S = CHUNK / SAMPLE_RATE
FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
SILENT_CHUNK = bytes(CHUNK_BYTES)

LONGEST_FILE_S = 3 * 3600  # of a file that is read whole into memory
_FULL_SCALE = 32768.0


class AudioError(ValueError):
    """One line that names the file and what is wrong with it."""


def from_pcm16(pcm: bytes) -> Samples:
    """s16le bytes as float32 in [-1, 1)."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(_FULL_SCALE)


def to_pcm16(samples: npt.NDArray[np.floating]) -> bytes:
    """Float samples as s16le, clipped; the inverse of `from_pcm16`, bit for bit."""
    scaled: npt.NDArray[np.floating] = np.rint(samples * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1)
    return scaled.astype("<i2").tobytes()


def rms(pcm: bytes) -> float:
    """Root mean square of s16le samples, 1.0 being full scale; 0 for none."""
    samples = np.frombuffer(pcm, "<i2").astype(np.float64)
    return math.sqrt(samples @ samples / samples.size) / _FULL_SCALE if samples.size else 0.0


def levels(pcm: bytes) -> list[float]:
    """`rms` of each of these chunks of 20 ms."""
    samples = np.frombuffer(pcm, "<i2").reshape(-1, CHUNK).astype(np.float64)
    found: list[float] = (np.sqrt(np.einsum("ij,ij->i", samples, samples) / CHUNK) / _FULL_SCALE).tolist()
    return found


def chunks(pcm: bytes) -> list[bytes]:
    """The 20 ms chunks of s16le sound, the last one filled up with silence."""
    filled = pcm + bytes(-len(pcm) % CHUNK_BYTES)
    return [filled[at:at + CHUNK_BYTES] for at in range(0, len(filled), CHUNK_BYTES)]


def read_audio(path: Path) -> Samples:
    """Any audio file that FFmpeg knows, mixed to mono and resampled to SAMPLE_RATE; raises AudioError."""
    if not path.is_file():
        raise AudioError(f"{path}: there is no such file")
    parts: list[npt.NDArray[np.int16]] = []
    length = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: there is no sound in it")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(audio=0):
                for resampled in resampler.resample(frame):
                    parts.append(resampled.to_ndarray()[0])
                    length += resampled.samples
                if length > LONGEST_FILE_S * SAMPLE_RATE:
                    raise AudioError(f"{path}: longer than the {LONGEST_FILE_S // 3600} hours allowed")
            parts.extend(resampled.to_ndarray()[0] for resampled in resampler.resample(None))
    except (av.error.FFmpegError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: can't be read as audio ({said})") from None
    samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
    if not samples.size:
        raise AudioError(f"{path}: holds no samples")
    return from_pcm16(samples.tobytes())


def write_wav(path: Path, samples: Samples) -> None:
    """Mono samples as a 16-bit WAV at SAMPLE_RATE; raises AudioError where the file can't be written."""
    try:
        with path.open("wb") as file, wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(BYTES_PER_SAMPLE)
            writer.setframerate(SAMPLE_RATE)
            writer.writeframes(to_pcm16(samples))
    except OSError as error:
        raise AudioError(f"{path}: can't be written ({error.strerror})") from None
