"""Ten minutes with a telephone whose clock is wrong: the recording's two sides never part."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
import numpy as np
import pytest
from call_peers import speech
from sip_bench import Surroundings, running, wait_for

from bench.rtp_peer import Linear, call
from media.audio import CHUNK_S, SAMPLE_RATE, Samples, from_pcm16, read_audio
from media.telephone import LINE_RATE, PACKET, resample, to_line

SECONDS = 600.0
FAST = 1 + 200e-6  # the telephone's clock
PIECE = 4 * SAMPLE_RATE  # that is compared at a time
AGREED_AFTER_S = 20.0  # the playout begins with a piece more in hand, and gives it back


def sides(path: Path) -> tuple[Samples, Samples]:
    """What was heard and what was said."""
    with av.open(str(path)) as file:
        samples = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in file.decode(audio=0)])
    heard, said = (from_pcm16(np.ascontiguousarray(side).tobytes()) for side in samples.T)
    return heard, said


def lag_and_likeness(part: Samples, whole: Samples, around: int, reach: int = SAMPLE_RATE) -> tuple[int, float]:
    """Where in `whole`, at most `reach` samples from `around`, `part` is found, as a shift; and how alike they are."""
    first = max(0, around - reach)
    there = whole[first:around + reach + len(part)].astype(np.float64)
    size = 1 << (len(there) + len(part)).bit_length()
    product = np.fft.irfft(np.fft.rfft(there, size) * np.fft.rfft(part, size).conj(), size)[:len(there) - len(part) + 1]
    power = np.concatenate(([0.0], np.cumsum(there * there)))
    energies = power[len(part):] - power[:-len(part)]
    likeness = product / np.sqrt(np.maximum(energies, 1e-6) * float(np.sum(part.astype(np.float64) ** 2)))
    best = int(np.argmax(likeness))
    return first + best - around, float(likeness[best])


@pytest.mark.soak
async def test_a_telephone_200_ppm_fast_moves_neither_side_of_the_recording(redis_url: str, tmp_path: Path) -> None:
    words = "Hello there, this is a long call, and nothing of it shall be lost or moved. " * 2
    line = to_line(resample(read_audio(speech(tmp_path / "speech.wav", words, 12.0)), SAMPLE_RATE, LINE_RATE))
    packets = len(line) // PACKET

    def said(number: int) -> Linear:
        at = number % packets * PACKET
        return line[at:at + PACKET]

    with Surroundings(redis_url), running(redis_url, tmp_path, lease_s=6.0) as bridge:
        talk = await asyncio.to_thread(call, bridge.uri("echo"), SECONDS, said, clock=FAST)
        [path] = await asyncio.to_thread(
            wait_for, lambda: list((bridge.data_dir / "calls").glob("*.flac")), 60.0)
    heard, recorded = sides(path)
    assert len(heard) == pytest.approx(SECONDS * SAMPLE_RATE, abs=SAMPLE_RATE)
    assert len(talk.came) == pytest.approx(SECONDS / CHUNK_S, rel=0.01), "as many packets as its clock has ticks"
    came = resample(from_pcm16(np.concatenate(talk.came).tobytes()), LINE_RATE, SAMPLE_RATE)
    between, likenesses = [], []
    for at in range(round(AGREED_AFTER_S) * SAMPLE_RATE, len(recorded) - 3 * PIECE, 20 * SAMPLE_RATE):
        part = recorded[at:at + PIECE]
        if np.sqrt(np.mean(part * part)) < 0.01:
            continue
        lag, likeness = lag_and_likeness(part, heard, at)  # the echo
        between.append(lag / SAMPLE_RATE)
        likenesses.append(likeness)
        _, likeness = lag_and_likeness(heard[at:at + PIECE], came, at)
        assert likeness > 0.98, f"what came at {at / SAMPLE_RATE:.0f} s isn't what was recorded"
    assert len(between) > 15
    assert max(between) - min(between) <= CHUNK_S, "both sides lie on one clock"
    assert np.median(likenesses) > 0.98
