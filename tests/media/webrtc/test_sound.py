from __future__ import annotations

import numpy as np

from media.audio import CHUNK, CHUNK_BYTES, SAMPLE_RATE, from_pcm16, rms, to_pcm16
from media.opus import Encoder
from media.webrtc.sound import Concealer, Listener

TICK = 960


def voice(seconds: float) -> np.ndarray:
    """Something with a pitch of 120 Hz, as speech has."""
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return sum(0.2 / n * np.sin(2 * np.pi * 120 * n * at + n) for n in range(1, 12)) * (0.7 + 0.3 * np.sin(7 * at))


def chunks(samples: np.ndarray) -> list[bytes]:
    pcm = to_pcm16(samples)
    return [pcm[at:at + CHUNK_BYTES] for at in range(0, len(pcm), CHUNK_BYTES)]


def heard(packets: list[bytes | None]) -> tuple[np.ndarray, list[bool]]:
    """What comes of packets that arrive in time, None being one that doesn't; and where it was concealed."""
    listener = Listener()
    pieces, concealed = [], []
    for number, packet in enumerate(packets):
        if packet is not None:
            listener.push(number * TICK, packet)
        piece = listener.tick()
        pieces.append(from_pcm16(piece.chunk or bytes(CHUNK_BYTES)))
        concealed.append(piece.concealed)
    return np.concatenate(pieces), concealed


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation at the best of small delays, those of codec and filter."""
    return max(float(np.corrcoef(one[lag:], other[:len(other) - lag])[0, 1]) for lag in range(60, 200))


def test_sound_passes_the_codec_both_ways_and_keeps_its_place() -> None:
    said = voice(2.0)
    encoder = Encoder()
    back, concealed = heard([encoder.encode(chunk) for chunk in chunks(said)])
    assert likeness(back, said) > 0.98
    assert not any(concealed)


def test_a_packet_is_small_and_comes_with_every_piece() -> None:
    encoder = Encoder()
    packets = [encoder.encode(chunk) for chunk in chunks(voice(1.0))]
    assert all(0 < len(packet) < 200 for packet in packets)
    assert 8 * sum(map(len, packets)) < 48_000


def test_a_lost_packet_is_filled_with_what_it_was_like_and_shifts_nothing() -> None:
    said = voice(2.0)
    encoder = Encoder()
    packets: list[bytes | None] = [encoder.encode(chunk) for chunk in chunks(said)]
    for lost in range(10, 100, 10):
        packets[lost] = None
    back, concealed = heard(packets)
    assert [number for number, each in enumerate(concealed) if each] == list(range(10, 100, 10))
    assert likeness(back, said) > 0.95
    gap = back[50 * CHUNK:51 * CHUNK]
    assert rms(to_pcm16(gap)) > 0.5 * rms(to_pcm16(back[48 * CHUNK:49 * CHUNK]))


def test_a_long_gap_fades_to_silence() -> None:
    encoder = Encoder()
    packets: list[bytes | None] = [encoder.encode(chunk) for chunk in chunks(voice(1.0))]
    back, concealed = heard(packets[:20] + [None] * 20)
    assert all(concealed[20:])
    assert rms(to_pcm16(back[20 * CHUNK:21 * CHUNK])) > 0.01
    assert not back[24 * CHUNK:].any()


def test_before_the_first_packet_there_is_silence() -> None:
    listener = Listener()
    assert listener.tick() == (None, True)


def test_what_is_no_opus_is_concealed_and_harms_nothing() -> None:
    said = voice(1.0)
    encoder = Encoder()
    packets: list[bytes | None] = [encoder.encode(chunk) for chunk in chunks(said)]
    packets[20] = b"\xfb\xff" + b"\xff" * 10
    packets[30] = b"\x03\x02"
    back, _ = heard(packets)
    assert likeness(back[35 * CHUNK:], said[35 * CHUNK:]) > 0.95


def test_delay_is_given_back_where_it_is_quiet() -> None:
    encoder = Encoder()
    silence = [encoder.encode(bytes(CHUNK_BYTES)) for _ in range(700)]
    listener = Listener()
    listener.push(0, silence[0])
    listener.push(TICK, silence[1])
    for number, packet in enumerate(silence[2:], 2):
        listener.push(number * TICK, packet)
        listener.tick()
    assert listener.counts.shed == 2
    assert listener.counts.waited == 0


def test_what_fills_a_gap_goes_on_with_the_pitch_and_ends_without_a_step() -> None:
    concealer = Concealer()
    said = voice(0.5).astype(np.float32)
    concealer.heard(said[:10 * CHUNK])
    filled = concealer.missing(CHUNK)
    back = concealer.heard(said[11 * CHUNK:12 * CHUNK])
    whole = np.concatenate([said[9 * CHUNK:10 * CHUNK], filled, back])
    steps = np.abs(np.diff(whole))
    assert steps.max() < 2 * np.abs(np.diff(said)).max()
    assert float(np.corrcoef(filled[:240], said[10 * CHUNK:10 * CHUNK + 240])[0, 1]) > 0.8
