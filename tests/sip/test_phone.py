from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from call_peers import free_port

from media.audio import SAMPLE_RATE, AudioError, write_wav
from sip.phone import PhoneError, measure_return, phone

NOISE = np.random.default_rng(1).normal(0, 0.1, 3 * SAMPLE_RATE).astype(np.float32)


def delayed(samples: int) -> np.ndarray:
    return np.concatenate([np.zeros(samples, np.float32), NOISE])


def test_the_delay_of_what_comes_back_is_found_to_the_sample() -> None:
    delay_ms, correlation = measure_return(NOISE, delayed(3600))
    assert delay_ms == pytest.approx(150.0)
    assert correlation == pytest.approx(1.0)


def test_a_delay_that_grows_in_between_does_not_hide_that_the_sound_came_back() -> None:
    back = np.concatenate([delayed(2400)[:2 * SAMPLE_RATE], np.zeros(480, np.float32), delayed(2400)[2 * SAMPLE_RATE:]])
    delay_ms, correlation = measure_return(NOISE, back.astype(np.float32))
    assert delay_ms == pytest.approx(100.0)
    assert correlation is not None
    assert correlation > 0.9


def test_a_call_that_ends_before_the_file_is_measured_on_what_it_had_time_for() -> None:
    _, correlation = measure_return(NOISE, delayed(2400)[:SAMPLE_RATE])
    assert correlation is not None
    assert correlation > 0.85


def test_what_has_nothing_to_do_with_it_does_not_correlate() -> None:
    _, correlation = measure_return(NOISE, np.random.default_rng(2).normal(0, 0.1, len(NOISE)).astype(np.float32))
    assert correlation is not None
    assert correlation < 0.2


def test_silence_has_no_delay() -> None:
    silence = np.zeros(SAMPLE_RATE, np.float32)
    assert measure_return(NOISE, silence) == (None, None)
    assert measure_return(silence, NOISE) == (None, None)
    assert measure_return(NOISE, silence[:0]) == (None, None)


@pytest.mark.parametrize("uri", ["agent", "sip:127.0.0.1", "sip:agent@", "http://x@y", "sip:a b@127.0.0.1", ""])
async def test_what_is_no_sip_address_gets_one_line(uri: str) -> None:
    with pytest.raises(PhoneError, match="no SIP address") as caught:
        await phone(uri)
    assert "\n" not in str(caught.value)


async def test_an_unknown_codec_gets_one_line() -> None:
    with pytest.raises(PhoneError, match="none of the codecs g722, pcmu, pcma"):
        await phone("sip:a@127.0.0.1", codec="mp3")


async def test_a_file_that_is_not_there_or_can_not_be_written_is_named_before_the_call(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        await phone("sip:a@127.0.0.1", play=tmp_path / "none.wav")
    write_wav(tmp_path / "a.wav", NOISE)
    with pytest.raises(AudioError, match="can't be written"):
        await phone("sip:a@127.0.0.1", play=tmp_path / "a.wav", record=tmp_path / "no" / "b.wav")


async def test_nobody_who_answers_is_told_after_the_given_time() -> None:
    with pytest.raises(PhoneError, match=r"no answer within 1 s|refused with 50[03]") as caught:
        await phone(f"sip:a@127.0.0.1:{free_port()}", answer_timeout_s=1.0)
    assert "\n" not in str(caught.value)


async def test_a_host_that_can_not_be_reached_gets_one_line() -> None:
    with pytest.raises(PhoneError, match="host nowhere.invalid"):
        await phone("sip:a@nowhere.invalid", answer_timeout_s=1.0)
