from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from agent.train.acoustics import (
    COLOUR_HZ,
    Condition,
    Echo,
    Noise,
    Reverb,
    Shares,
    babble,
    coloured,
    draw_condition,
    heard,
    in_room,
    noise,
)
from agent.train.speech import LEVEL_DB, SAMPLE_RATE, Samples
from media.telephone import PhoneLine

SILENCE = np.zeros(2 * SAMPLE_RATE, np.float32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def speechlike(seed: int = 0, seconds: float = 2.0) -> Samples:
    """White noise as loud as speech."""
    sound = generator(seed).standard_normal(round(seconds * SAMPLE_RATE)) * 10 ** (LEVEL_DB / 20)
    return sound.astype(np.float32)


def level_db(sound: Samples) -> float:
    return float(10 * np.log10(np.mean(sound.astype(np.float64) ** 2) + 1e-20))


def band_db(sound: Samples, low_hz: float, high_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(sound)) ** 2
    hz = np.fft.rfftfreq(sound.size, 1 / SAMPLE_RATE)
    return float(10 * np.log10(spectrum[(hz >= low_hz) & (hz < high_hz)].sum() + 1e-20))


def test_a_clean_line_changes_nothing() -> None:
    assert np.array_equal(heard(speechlike(), SILENCE, Condition(), generator()), speechlike())


@pytest.mark.parametrize("condition", [
    Condition(gain_db=-6), Condition("wide_band"), Condition("phone", phone=PhoneLine("a", loss=0.1)),
    Condition(noise=Noise("white", -20)), Condition(babble_db=-20), Condition(echo=Echo(0.1, 0.2)),
    Condition(reverb=Reverb(-15, 0.2)), Condition(colour_db=(6.0, 0, 0, -6.0, 0, 3.0, -9.0)),
], ids=lambda condition: repr(condition)[9:40])
def test_every_condition_is_heard_stays_in_range_and_repeats_by_seed(condition: Condition) -> None:
    agent, others = speechlike(1), [speechlike(2), speechlike(3)]
    first, again = (heard(speechlike(), agent, condition, generator(7), others=others) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == speechlike().shape
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert not np.allclose(first, speechlike(), atol=1e-4)


def test_a_colour_moves_bands_by_its_gains_and_speech_neither_in_time_nor_in_loudness() -> None:
    gains = (0.0, 0.0, 12.0, 0.0, -6.0, 0.0, 0.0)
    changed = coloured(speechlike(), gains)
    moved = [band_db(changed, hz / 1.03, hz * 1.03) - band_db(speechlike(), hz / 1.03, hz * 1.03) for hz in COLOUR_HZ]
    assert [gain - moved[0] for gain in moved] == pytest.approx(gains, abs=0.7)
    assert level_db(changed) == pytest.approx(level_db(speechlike()), abs=0.01)
    click = np.zeros(4800, np.float32)
    click[2400] = 0.5
    assert int(np.argmax(np.abs(coloured(click, gains)))) == 2400
    assert np.array_equal(coloured(SILENCE, gains), SILENCE)


def test_a_colour_without_all_its_gains_is_refused() -> None:
    with pytest.raises(ValueError, match="a condition's colour has 7 gains, not 2"):
        Condition(colour_db=(1.0, 2.0))


def test_without_colours_the_same_conditions_are_drawn_as_with_them() -> None:
    seeds = range(40)
    drawn = {share: [draw_condition(generator(seed), shares=Shares(coloured=share)) for seed in seeds]
             for share in (0.0, 0.7)}
    assert all(condition.colour_db is None for condition in drawn[0.0])
    assert 15 < sum(condition.colour_db is not None for condition in drawn[0.7]) < 40
    assert drawn[0.0] == [replace(condition, colour_db=None) for condition in drawn[0.7]]


@pytest.mark.parametrize("color", ["white", "pink", "hum"])
def test_noise_is_as_loud_as_asked(color: str) -> None:
    sound = heard(SILENCE, SILENCE, Condition(noise=Noise(color, -12)), generator())  # type: ignore[arg-type]
    assert level_db(sound) == pytest.approx(LEVEL_DB - 12, abs=0.3)


def test_noises_have_their_colors() -> None:
    white, pink, hum = (noise(2**17, color, generator()) for color in ("white", "pink", "hum"))  # type: ignore[arg-type]
    assert band_db(white, 2000, 4000) - band_db(white, 1000, 2000) == pytest.approx(3, abs=0.5)
    assert band_db(pink, 2000, 4000) - band_db(pink, 1000, 2000) == pytest.approx(0, abs=0.5)
    assert band_db(hum, 40, 370) - band_db(hum, 400, 12000) > 20


def test_the_agents_echo_comes_late_and_soft() -> None:
    sound = heard(SILENCE, speechlike(1), Condition(echo=Echo(0.1, 0.25)), generator())
    delay = round(0.25 * SAMPLE_RATE)
    assert not sound[:delay].any()
    assert np.allclose(sound[delay:], 0.1 * speechlike(1)[:-delay], atol=1e-6)


def test_a_room_adds_a_tail_and_moves_nothing() -> None:
    click = SILENCE.copy()
    click[1000] = 0.5
    answered = in_room(click, Reverb(-15, 0.2), generator())
    assert np.argmax(np.abs(answered)) == 1000
    assert level_db(answered - click) == pytest.approx(level_db(click) - 15, abs=0.1)
    assert np.abs(answered[1000 + round(0.21 * SAMPLE_RATE):]).max() < 1e-6


def test_babble_is_made_of_the_others_and_lasts() -> None:
    low, high = (
        (0.1 * np.sin(2 * np.pi * hz * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32) for hz in (200, 3000)
    )
    sound = babble(5 * SAMPLE_RATE, [low, high], generator())
    assert level_db(sound) == pytest.approx(LEVEL_DB, abs=0.1)
    for second in range(5):
        part = sound[second * SAMPLE_RATE:(second + 1) * SAMPLE_RATE]
        assert max(band_db(part, 190, 210), band_db(part, 2990, 3010)) > band_db(part, 500, 2500) + 10
    with pytest.raises(ValueError, match="babble needs utterances"):
        heard(SILENCE, SILENCE, Condition(babble_db=-10), generator())


def test_wide_band_ends_below_8_khz_and_the_phone_below_4() -> None:
    for condition, kept_hz, lost_hz in (
        (Condition("wide_band"), 6800, 8500), (Condition("phone", phone=PhoneLine()), 3000, 4000),
    ):
        sound = heard(speechlike(), SILENCE, condition, generator())
        assert band_db(sound, kept_hz, kept_hz + 300) > band_db(speechlike(), kept_hz, kept_hz + 300) - 2
        assert band_db(sound, lost_hz, 12000) < band_db(speechlike(), lost_hz, 12000) - 25


def test_conditions_are_drawn_within_their_ranges_and_of_all_kinds() -> None:
    random = generator(3)
    drawn = [draw_condition(random) for _ in range(3000)]
    bands = Counter(one.band for one in drawn)
    assert {band: count / 3000 for band, count in bands.items()} == pytest.approx(dict(Shares().bands), abs=0.03)
    assert all(-16 <= one.gain_db <= 8 for one in drawn)
    noises = [one.noise for one in drawn if one.noise]
    assert {one.color for one in noises} == {"white", "pink", "hum"}
    assert all(-60 <= one.level_db <= 6 for one in noises)
    assert any(one.level_db > -10 for one in noises)
    echoes = [one.echo for one in drawn if one.echo]
    assert all(0 <= one.gain <= 0.12 and 0.1 <= one.delay_s <= 0.5 for one in echoes)
    phones = [one.phone for one in drawn if one.phone]
    assert {one.law for one in phones} == {"mu", "a"}
    assert 0.15 < sum(one.loss > 0 for one in phones) / len(phones) < 0.25
    assert all(one.loss <= 0.03 for one in phones)
    for share in (sum(one.babble_db is not None for one in drawn), sum(one.reverb is not None for one in drawn)):
        assert 0.03 < share / 3000 < 0.2


def test_a_seed_always_draws_the_same_condition_and_a_band_can_be_given() -> None:
    assert draw_condition(generator(1)) == draw_condition(generator(1)) != draw_condition(generator(2))
    random = generator()
    assert {draw_condition(random, band="phone").band for _ in range(50)} == {"phone"}


@pytest.mark.parametrize(("fields", "complaint"), [
    ({"band": "radio"}, "band is one of clean, wide_band, phone, not 'radio'"),
    ({"band": "phone"}, "phone line if its band is phone"),
    ({"band": "clean", "phone": PhoneLine()}, "phone line if its band is phone"),
])
def test_an_impossible_condition_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Condition(**fields)  # type: ignore[arg-type]
