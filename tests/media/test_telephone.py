from __future__ import annotations

import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.audio import SAMPLE_RATE, Samples
from media.telephone import (
    LAWS,
    LINE_RATE,
    PACKET,
    Law,
    PhoneLine,
    conceal,
    decode_g711,
    encode_g711,
    from_line,
    gain,
    lost_packets,
    over_phone,
    resample,
    to_line,
)

EVERY_CODE = np.arange(256, dtype=np.uint8)
EVERY_SAMPLE = np.arange(-32768, 32768).astype(np.int16)


def tone(hz: float, seconds: float = 1.0, rate: int = SAMPLE_RATE, *, level: float = 0.3) -> Samples:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def voiced(seconds: float = 1.0, rate: int = LINE_RATE) -> Samples:
    """A vowel at 150 Hz: its first four harmonics."""
    return np.sum([tone(150 * n, seconds, rate, level=0.2 / n) for n in (1, 2, 3, 4)], axis=0).astype(np.float32)


def level_db(sound: Samples) -> float:
    """Of its middle, so that the ends of filters don't count."""
    middle = sound[sound.size // 4:-sound.size // 4].astype(np.float64)
    return float(10 * np.log10(np.mean(middle * middle) + 1e-20))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- G.711 ---


@pytest.mark.parametrize(("law", "code", "level"), [
    ("mu", 0xFF, 0), ("mu", 0x7F, 0), ("mu", 0xFE, 8), ("mu", 0x7E, -8), ("mu", 0xF0, 120), ("mu", 0xEF, 132),
    ("mu", 0x80, 32124), ("mu", 0x00, -32124),
    ("a", 0xD5, 8), ("a", 0x55, -8), ("a", 0xD4, 24), ("a", 0xC5, 264), ("a", 0xAA, 32256), ("a", 0x2A, -32256),
])
def test_codes_have_the_levels_of_the_standards_tables(law: Law, code: int, level: int) -> None:
    assert decode_g711(np.array([code], np.uint8), law)[0] == level


@pytest.mark.parametrize(("law", "encoding"), [("mu", "mu-law"), ("a", "a-law")])
def test_every_code_is_decoded_as_sox_decodes_it(law: Law, encoding: str) -> None:
    command = ["sox", "-D", "-traw", f"-e{encoding}", "-b8", "-r8000", "-c1", "-", "-traw", "-esigned", "-b16", "-"]
    decoded = subprocess.run(command, input=EVERY_CODE.tobytes(), capture_output=True, check=True).stdout
    assert np.array_equal(decode_g711(EVERY_CODE, law), np.frombuffer(decoded, "<i2"))


@pytest.mark.parametrize(("law", "sequence", "overload_db"), [
    ("mu", [0x1E, 0x0B, 0x0B, 0x1E, 0x9E, 0x8B, 0x8B, 0x9E], 3.17),
    ("a", [0x34, 0x21, 0x21, 0x34, 0xB4, 0xA1, 0xA1, 0xB4], 3.14),
])
def test_the_digital_milliwatt_lies_where_the_standard_puts_it(
    law: Law, sequence: list[int], overload_db: float,
) -> None:
    # G.711, table 5 and 6: these eight codes are 1 kHz at 0 dBm0; the highest level is at +3.17 and +3.14 dBm0.
    codes = np.array(sequence * 100, np.uint8)
    levels = decode_g711(codes, law).astype(np.float64)
    highest = {"mu": 8159 * 4, "a": 4096 * 8}[law]
    assert 20 * np.log10(highest / (np.sqrt(2) * np.sqrt(np.mean(levels**2)))) == pytest.approx(overload_db, abs=0.005)
    assert np.array_equal(encode_g711(decode_g711(codes, law), law), codes)


@pytest.mark.parametrize("law", LAWS)
def test_a_code_survives_decoding_and_encoding(law: Law) -> None:
    again = encode_g711(decode_g711(EVERY_CODE, law), law)
    changed = {0x7F: 0xFF} if law == "mu" else {}  # mu-law has two zeros
    assert np.array_equal(again, [changed.get(code, code) for code in range(256)])


@pytest.mark.parametrize(("law", "below", "above"), [
    ("mu", (3, 0xFF), (4, 0xFE)), ("mu", (123, 0xF0), (124, 0xEF)), ("mu", (31611, 0x81), (31612, 0x80)),
    ("a", (15, 0xD5), (16, 0xD4)), ("a", (511, 0xCA), (512, 0xF5)), ("a", (31743, 0xAB), (31744, 0xAA)),
])
def test_samples_are_told_apart_at_the_standards_decision_values(
    law: Law, below: tuple[int, int], above: tuple[int, int],
) -> None:
    for sample, code in (below, above):
        assert encode_g711(np.array([sample], np.int16), law)[0] == code
        # The mirror image has the same code but for its sign: ones' complement, as -1 is the mirror of 0.
        assert encode_g711(np.array([~sample], np.int16), law)[0] == code ^ 0x80


@pytest.mark.parametrize("law", LAWS)
def test_a_louder_sample_never_decodes_to_a_softer_one(law: Law) -> None:
    decoded = decode_g711(encode_g711(EVERY_SAMPLE, law), law).astype(int)
    assert np.all(np.diff(decoded) >= 0)
    samples = EVERY_SAMPLE.astype(int)
    error = np.abs(decoded - samples)[np.abs(samples) <= 32000]
    assert np.all(error <= np.maximum(16, np.abs(samples)[np.abs(samples) <= 32000] / 15))


def test_what_is_too_loud_is_clipped_not_wrapped() -> None:
    assert to_line(np.array([2.0, -2.0], np.float32)).tolist() == [32767, -32768]
    assert np.all(from_line(to_line(np.array([0.5, -1.0], np.float32))) == [0.5, -1.0])


# --- rates and the band ---


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(24000, 8000), (8000, 24000), (22050, 24000), (16000, 24000), (48000, 24000)]
)
def test_resampling_keeps_a_tone_in_its_place(from_hz: int, to_hz: int) -> None:
    for hz in (100, 1000, 3300):
        edge = to_hz // 10
        resampled, expected = resample(tone(hz, 0.5, from_hz), from_hz, to_hz), tone(hz, 0.5, to_hz)
        assert resampled.size == expected.size
        assert np.abs(resampled - expected)[edge:-edge].max() < 1e-4


def test_what_a_lower_rate_cant_carry_is_gone_rather_than_folded() -> None:
    assert level_db(resample(tone(5000), SAMPLE_RATE, LINE_RATE)) < -80
    assert level_db(resample(tone(3000, rate=LINE_RATE), LINE_RATE, SAMPLE_RATE)) == pytest.approx(
        level_db(tone(3000)), abs=0.01
    )  # no images: nothing is added to the tone


@given(st.integers(0, 700), st.sampled_from([(24000, 8000), (8000, 24000), (22050, 24000), (24000, 16000)]))
def test_resampling_keeps_the_duration(length: int, rates: tuple[int, int]) -> None:
    from_hz, to_hz = rates
    assert resample(np.ones(length, np.float32), from_hz, to_hz).size == -(-length * to_hz // from_hz)


def test_rates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rates must be above 0, not 0 and 8000"):
        resample(tone(100), 0, 8000)


# --- the whole line ---


@pytest.mark.parametrize("law", LAWS)
def test_a_phone_carries_300_to_3400_hz(law: Law) -> None:
    def loss_db(hz: float) -> float:
        return level_db(tone(hz)) - level_db(over_phone(tone(hz), PhoneLine(law), generator()))

    assert all(abs(loss_db(hz)) < 1 for hz in (320, 1000, 2000, 3350))
    assert all(loss_db(hz) > 30 for hz in (50, 120, 3700, 6000))


def test_the_two_laws_sound_different() -> None:
    mu, a = (over_phone(tone(1000, level=0.01), PhoneLine(law), generator()) for law in LAWS)
    assert 1e-5 < np.abs(mu - a).max() < 1e-3


@pytest.mark.parametrize("length", [0, 1, 479, 1920, 24001])
def test_a_line_changes_neither_length_nor_timing(length: int) -> None:
    noise = generator().standard_normal(length).astype(np.float32) * 0.1
    heard = over_phone(noise, PhoneLine(), generator())
    assert heard.shape == noise.shape
    assert heard.dtype == np.float32
    if length > 20000:
        likeness = [float(np.dot(np.roll(heard, shift), noise)) for shift in range(-5, 6)]
        assert int(np.argmax(likeness)) - 5 == 0


def test_a_line_makes_speech_louder_or_softer() -> None:
    quiet = over_phone(tone(1000), PhoneLine(gain_db=-20), generator())
    assert level_db(quiet) - level_db(tone(1000)) == pytest.approx(-20, abs=0.5)
    assert np.array_equal(gain(tone(1000), 0.0), tone(1000))


def test_the_same_generator_loses_the_same_packets() -> None:
    line = PhoneLine(loss=0.1, burst=2)
    first, again, other = (over_phone(tone(440), line, generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("fields", "complaint"), [
    ({"law": "b"}, "law is one of mu, a, not 'b'"),
    ({"loss": 1.0}, "loss .* not 1.0"),
    ({"burst": 0.5}, "burst .* not 0.5"),
])
def test_an_impossible_line_is_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PhoneLine(**fields)  # type: ignore[arg-type]


# --- lost packets ---


@pytest.mark.parametrize(("loss", "burst"), [(0.05, 1.2), (0.2, 3.0)])
def test_packets_are_lost_as_often_and_as_long_as_asked(loss: float, burst: float) -> None:
    lost = lost_packets(50_000, loss, burst, generator())
    runs = np.count_nonzero(np.diff(lost.astype(int)) == 1)
    assert lost.mean() == pytest.approx(loss, rel=0.1)
    assert lost.sum() / runs == pytest.approx(burst, rel=0.1)
    assert not lost_packets(100, 0.0, 1.0, generator()).any()


def lost_at(packets: int, *lost: int) -> np.ndarray:
    flags = np.zeros(packets, np.bool_)
    flags[list(lost)] = True
    return flags


def test_a_lost_packet_of_a_vowel_is_hardly_noticed() -> None:
    sound = voiced()
    heard = conceal(sound, lost_at(50, 20))
    gap = slice(20 * PACKET, 21 * PACKET)
    silenced = np.where(np.repeat(lost_at(50, 20), PACKET), 0, sound)
    assert np.sum((heard - sound)[gap] ** 2) < 0.05 * np.sum((silenced - sound)[gap] ** 2)
    assert np.abs(np.diff(heard)).max() < 1.2 * np.abs(np.diff(sound)).max()  # no clicks
    untouched = np.r_[0:20 * PACKET - 30, 22 * PACKET:sound.size]
    assert np.array_equal(heard[untouched], sound[untouched])


def test_a_voice_that_fades_is_continued_without_a_click() -> None:
    at = np.arange(LINE_RATE) / LINE_RATE
    harmonics = [np.sin(2 * np.pi * 97.7 * n * at + 1) / n for n in (1, 2, 3, 4)]
    sound = (0.2 * np.sum(harmonics, axis=0) * np.exp(8 * (0.4 - at))).astype(np.float32)
    heard = conceal(sound, lost_at(50, 20, 21))
    around = slice(20 * PACKET - 40, 21 * PACKET)
    bend = np.abs(np.diff(sound[19 * PACKET - 160:20 * PACKET], 2)).max()
    assert np.abs(np.diff(heard[around], 2)).max() < 1.1 * bend


def test_a_long_gap_falls_silent_after_60_ms() -> None:
    heard = conceal(voiced(), lost_at(50, *range(20, 30)))
    begin = 20 * PACKET
    assert np.abs(heard[begin:begin + 80]).max() > 0.2
    assert not heard[begin + 480:30 * PACKET].any()
    assert np.array_equal(heard[31 * PACKET:], voiced()[31 * PACKET:])


def test_a_call_that_begins_with_a_lost_packet_begins_silent() -> None:
    heard = conceal(voiced(), lost_at(50, 0))
    assert not heard[:PACKET].any()


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, PACKET))
def test_any_loss_is_concealed(flags: list[bool], last: int) -> None:
    sound = voiced()[:(len(flags) - 1) * PACKET + last]
    heard = conceal(sound, np.array(flags))
    assert heard.shape == sound.shape
    assert np.abs(heard).max() <= 1.5 * np.abs(voiced()).max()


def test_packets_and_sound_must_agree() -> None:
    with pytest.raises(ValueError, match="8000 samples are 50 packets, not 49"):
        conceal(voiced(), lost_at(49))
