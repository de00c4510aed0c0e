"""What lies between a caller's mouth and the agent's ear: the microphone, the room, other people, the agent's own echo,
the line.

    speech -> colour -> room -> + noise, + babble, + echo of the agent -> gain -> clean | wide band | phone -> heard
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from agent.train.speech import LEVEL_DB, SAMPLE_RATE, Samples
from media.telephone import PhoneLine, gain, over_phone, resample

Band = Literal["clean", "wide_band", "phone"]
Color = Literal["white", "pink", "hum"]

_WIDE_RATE = 16_000  # Hz: G.722's
COLOUR_HZ = (100, 200, 400, 800, 1600, 3200, 6400)  # at which a colour has its gains
_NOISE_BLOCK = 2**20  # samples, a bit over 40 s: longer noise repeats


@dataclass(frozen=True)
class Noise:
    color: Color
    level_db: float  # against the speech


@dataclass(frozen=True)
class Echo:
    """The agent, heard again through the caller's microphone."""

    gain: float
    delay_s: float


@dataclass(frozen=True)
class Reverb:
    level_db: float  # of the room's answer against the direct sound
    decay_s: float  # until it is 60 dB softer


@dataclass(frozen=True)
class Condition:
    """How one call's caller is heard. `phone` is there where `band` is "phone"."""

    band: Band = "clean"
    gain_db: float = 0.0
    noise: Noise | None = None
    babble_db: float | None = None  # against the speech
    echo: Echo | None = None
    reverb: Reverb | None = None
    phone: PhoneLine | None = None
    colour_db: tuple[float, ...] | None = None  # of the speech, at COLOUR_HZ

    def __post_init__(self) -> None:
        if self.colour_db is not None and len(self.colour_db) != len(COLOUR_HZ):
            raise ValueError(f"a condition's colour has {len(COLOUR_HZ)} gains, not {len(self.colour_db)}")
        if self.band not in get_args(Band):
            raise ValueError(f"a condition's band is one of {', '.join(get_args(Band))}, not {self.band!r}")
        if (self.phone is not None) != (self.band == "phone"):
            raise ValueError("a condition has a phone line if its band is phone, and only then")


@dataclass(frozen=True)
class Shares:
    """How often what happens in training's calls, and how strong it is: all in one place."""

    bands: tuple[tuple[Band, float], ...] = (("clean", 0.12), ("wide_band", 0.13), ("phone", 0.75))
    a_law: float = 0.5  # of phone calls
    loss: float = 0.2  # of phone calls lose packets
    noise: float = 0.4
    loud: float = 0.05  # of the noises: a street instead of a room
    babble: float = 0.05
    echo: float = 0.25
    reverb: float = 0.12
    coloured: float = 0.7  # microphones differ, and so do people more than a few synthesisers do

    gain_db: tuple[float, float, float] = (-16.0, -1.0, 8.0)  # least, most often, most
    quiet_db: tuple[float, float] = (-60.0, -28.0)  # of noise
    loud_db: tuple[float, float, float] = (-30.0, -22.0, 6.0)  # of noise: least, most often, most
    babble_db: tuple[float, float] = (-35.0, -15.0)
    echo_gain: tuple[float, float] = (0.0, 0.12)
    echo_delay_s: tuple[float, float] = (0.1, 0.5)
    reverb_db: tuple[float, float] = (-26.0, -10.0)
    reverb_decay_s: tuple[float, float] = (0.1, 0.4)
    colour_db: tuple[float, float] = (5.0, 12.0)  # a standard deviation, and the most
    lost_packets: tuple[float, float] = (0.005, 0.03)
    lost_in_a_row: tuple[float, float] = (1.0, 2.5)


def draw_condition(
    generator: np.random.Generator, *, band: Band | None = None, shares: Shares | None = None,
) -> Condition:
    """A call's condition; `band` where it is given."""
    shares = shares or Shares()
    bands, chances = zip(*shares.bands, strict=True)
    drawn: Band = bands[int(generator.choice(len(bands), p=np.array(chances) / sum(chances)))]
    chosen = band or drawn

    def happens(share: float) -> bool:
        return bool(generator.random() < share)

    def within(span: tuple[float, float]) -> float:
        return float(generator.uniform(*span))

    noise = None
    if happens(shares.noise):
        color: Color = ("white", "pink", "hum")[int(generator.choice(3, p=(0.35, 0.5, 0.15)))]
        loud = happens(shares.loud)
        level_db = float(generator.triangular(*shares.loud_db)) if loud else within(shares.quiet_db)
        noise = Noise(color, level_db)
    babble_db = within(shares.babble_db) if happens(shares.babble) else None
    echo = Echo(within(shares.echo_gain), within(shares.echo_delay_s)) if happens(shares.echo) else None
    reverb = Reverb(within(shares.reverb_db), within(shares.reverb_decay_s)) if happens(shares.reverb) else None
    gain_db = float(generator.triangular(*shares.gain_db))
    phone = None
    if chosen == "phone":
        lossy = happens(shares.loss)
        phone = PhoneLine(
            law="a" if happens(shares.a_law) else "mu",
            loss=within(shares.lost_packets) if lossy else 0.0,
            burst=within(shares.lost_in_a_row) if lossy else 1.0,
        )
    colour = None
    if shares.coloured and happens(shares.coloured):  # drawn last, or others would change with it
        spread, most = shares.colour_db
        colour = tuple(generator.normal(0.0, spread, len(COLOUR_HZ)).clip(-most, most).round(2).tolist())
    return Condition(chosen, gain_db, noise, babble_db, echo, reverb, phone, colour)


def heard(
    speech: Samples, agent: Samples, condition: Condition, generator: np.random.Generator, *,
    others: Sequence[Samples] = (),
) -> Samples:
    """The caller's track [n] as it reaches the agent, in [-1, 1]; nothing is shifted in time.

    speech, agent: [n] at SAMPLE_RATE, speech at LEVEL_DB; `others`: utterances that babble is made of. Raises
    ValueError if the condition has babble and there are none.
    """
    assert speech.shape == agent.shape
    sound = speech if condition.colour_db is None else coloured(speech, condition.colour_db)
    if condition.reverb is not None:
        sound = in_room(sound, condition.reverb, generator)
    if condition.noise is not None:
        sound = sound + gain(noise(speech.size, condition.noise.color, generator), LEVEL_DB + condition.noise.level_db)
    if condition.babble_db is not None:
        sound = sound + gain(babble(speech.size, others, generator), condition.babble_db)
    if condition.echo is not None:
        delay = round(condition.echo.delay_s * SAMPLE_RATE)
        echo = np.zeros_like(speech)
        echo[delay:] = agent[:max(0, agent.size - delay)] * np.float32(condition.echo.gain)
        sound = sound + echo
    sound = gain(sound, condition.gain_db).clip(-1, 1)
    if condition.phone is not None:
        sound = over_phone(sound, condition.phone, generator)
    elif condition.band == "wide_band":
        sound = resample(resample(sound, SAMPLE_RATE, _WIDE_RATE), _WIDE_RATE, SAMPLE_RATE)[:speech.size]
    result: Samples = sound.clip(-1, 1).astype(np.float32)
    return result


def coloured(speech: Samples, gains_db: Sequence[float]) -> Samples:
    """[n] as loud as before, with these gains at COLOUR_HZ, straight between them over the logarithm of frequency; not
    shifted in time."""
    loudness = float(np.sqrt(np.mean(speech * speech))) if speech.size else 0.0
    if not loudness:
        return speech
    spectrum = np.fft.rfft(speech, 2 ** math.ceil(math.log2(2 * speech.size)))
    hz = np.linspace(0, SAMPLE_RATE / 2, spectrum.size).clip(COLOUR_HZ[0])
    spectrum *= 10 ** (np.interp(np.log(hz), np.log(COLOUR_HZ), gains_db) / 20)
    return _normalised(np.fft.irfft(spectrum)[:speech.size]) * np.float32(loudness)


def noise(length: int, color: Color, generator: np.random.Generator) -> Samples:
    """[length] of noise, RMS 1: white; pink (as loud in each octave, from 20 Hz); the mains' hum with its overtones."""
    if color == "hum":
        hz = float(generator.choice((50.0, 60.0)))
        at = np.arange(length) / SAMPLE_RATE
        tones = [
            np.sin(2 * np.pi * hz * (overtone + 1) * at + generator.uniform(0, 2 * np.pi)) / (overtone + 1)
            for overtone in range(6)
        ]
        return _normalised(np.sum(tones, axis=0))
    white = generator.standard_normal(min(length, _NOISE_BLOCK), dtype=np.float32)
    if color == "pink":
        spectrum = np.fft.rfft(white, n=2**math.ceil(math.log2(max(2, white.size))))
        hz_of = np.linspace(0, SAMPLE_RATE / 2, spectrum.size)
        pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(hz_of, 20.0)))[:white.size]
        return np.resize(_normalised(pink), length)
    return np.resize(_normalised(white), length)


def babble(length: int, others: Sequence[Samples], generator: np.random.Generator) -> Samples:
    """[length] of people talking at the same time, each saying all of `others` in an order of their own; as loud as
    one speaker."""
    if not others:
        raise ValueError("babble needs utterances to be made of")
    total = np.zeros(length, np.float32)
    for _ in range(int(generator.integers(3, 7))):
        said = np.concatenate([others[place] for place in generator.permutation(len(others))])
        total += np.resize(np.roll(said, int(generator.integers(said.size))), length)
    return gain(_normalised(total), LEVEL_DB)


def in_room(speech: Samples, reverb: Reverb, generator: np.random.Generator) -> Samples:
    """[n] with a small room's answer: noise that decays, from 5 ms on."""
    taps = round(reverb.decay_s * SAMPLE_RATE)
    decay = 10 ** (-3 * np.arange(taps) / taps)
    answer = generator.standard_normal(taps) * decay
    answer[:round(0.005 * SAMPLE_RATE)] = 0
    answer *= 10 ** (reverb.level_db / 20) / np.sqrt(np.sum(answer * answer))
    size = 2 ** math.ceil(math.log2(speech.size + taps))
    echoes = np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(answer, size), size)[:speech.size]
    result: Samples = speech + echoes.astype(np.float32)
    return result


def _normalised(sound: np.typing.NDArray[np.floating]) -> Samples:
    rms = np.sqrt(np.mean(sound * sound)) if sound.size else 0.0
    result: Samples = (sound / rms if rms else sound).astype(np.float32)
    return result
