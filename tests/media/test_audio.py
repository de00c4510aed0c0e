from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.audio import (
    CHUNK,
    CHUNK_BYTES,
    FRAME_SAMPLES,
    SAMPLE_RATE,
    AudioError,
    chunks,
    from_pcm16,
    read_audio,
    rms,
    to_pcm16,
    write_wav,
)


@given(st.binary(max_size=400).filter(lambda data: len(data) % 2 == 0))
def test_pcm_survives_the_way_to_floats_and_back(pcm: bytes) -> None:
    assert to_pcm16(from_pcm16(pcm)) == pcm


def test_floats_beyond_full_scale_are_clipped_and_never_wrap() -> None:
    assert np.frombuffer(to_pcm16(np.array([1.5, -1.5, 1.0])), "<i2").tolist() == [32767, -32768, 32767]


def test_chunks_cover_the_sound_and_end_in_silence() -> None:
    pcm = b"\x01\x02" * (CHUNK + 10)
    parts = chunks(pcm)
    assert [len(part) for part in parts] == [CHUNK_BYTES, CHUNK_BYTES]
    assert b"".join(parts) == pcm + bytes(2 * (CHUNK - 10))


def test_rms_of_a_full_scale_square_is_one() -> None:
    assert rms(to_pcm16(np.array([-1.0] * 8))) == pytest.approx(1.0)
    assert rms(b"") == 0.0


def test_a_wav_of_another_rate_and_two_channels_is_read_as_24_khz_mono(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    subprocess.run(["sox", "-n", "-r", "8000", "-c", "2", str(path), "synth", "1", "sine", "440", "gain", "-6"],
                   check=True)
    samples = read_audio(path)
    assert abs(len(samples) - SAMPLE_RATE) <= 480
    spectrum = np.abs(np.fft.rfft(samples[:SAMPLE_RATE]))
    assert abs(int(spectrum.argmax()) * SAMPLE_RATE / min(len(samples), SAMPLE_RATE) - 440) < 3
    assert float(np.abs(samples).max()) == pytest.approx(0.5, abs=0.03)


def test_what_is_written_as_a_wav_reads_back_the_same(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).uniform(-0.9, 0.9, 5 * FRAME_SAMPLES + 7).astype(np.float32)
    write_wav(tmp_path / "a.wav", samples)
    assert to_pcm16(read_audio(tmp_path / "a.wav")) == to_pcm16(samples)


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), (b"no sound at all" * 10, "can't be read")])
def test_an_unreadable_file_gets_one_line_that_names_it(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=said) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_gets_one_line_when_writing(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="can't be written"):
        write_wav(tmp_path / "no" / "a.wav", np.zeros(3, np.float32))
