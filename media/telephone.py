"""What a telephone line does to sound (pure numpy): G.711, the phone's band, lost packets and their concealment.

Sound is float32 in [-1, 1) at SAMPLE_RATE; inside the line it is at 8 kHz, in packets of 20 ms:

    24 kHz -> gain -> 8 kHz -> 300-3400 Hz -> mu-law or A-law and back -> lost packets concealed -> 24 kHz

Every filter is symmetric, so nothing is delayed. What is random comes from the generator that is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from media.audio import SAMPLE_RATE, Samples

Law = Literal["mu", "a"]
Codes = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]

LINE_RATE = 8000  # Hz
PACKET = 160  # samples at LINE_RATE: 20 ms
LAWS: tuple[Law, ...] = ("mu", "a")

_TAPS = 64  # of a resampling filter in each phase, at the lower of the two rates
_BETA = 9.0  # of its Kaiser window: images and aliases at -90 dB
_BAND_HZ = (250.0, 3500.0)  # where the band filter is at -6 dB: flat from 300 to 3400 Hz
_BAND_TAPS = 161
_SHORTEST_PITCH, _LONGEST_PITCH = 40, 120  # samples at LINE_RATE: 200 to 66 Hz
_COMPARED = 160  # samples over which the pitch is looked for
_FULL_TONE = 80  # samples of concealment before it fades: 10 ms
_FADED = 480  # samples after which it is silent: 60 ms


@dataclass(frozen=True)
class PhoneLine:
    """One direction of a phone call."""

    law: Law = "mu"
    gain_db: float = 0.0  # before the codec, which clips
    loss: float = 0.0  # share of packets that never arrive
    burst: float = 1.0  # packets lost in a row, on average

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"a line's law is one of {', '.join(LAWS)}, not {self.law!r}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"a line's loss is a share of its packets below 1, not {self.loss}")
        if self.burst < 1:
            raise ValueError(f"a line's burst is 1 packet or more, not {self.burst}")


def over_phone(samples: Samples, line: PhoneLine, generator: np.random.Generator) -> Samples:
    """`samples` [n] at SAMPLE_RATE as they are heard at the other end of `line`: [n], not shifted in time."""
    narrow = phone_band(resample(gain(samples, line.gain_db), SAMPLE_RATE, LINE_RATE))
    heard = from_line(decode_g711(encode_g711(to_line(narrow), line.law), line.law))
    if line.loss:
        packets = math.ceil(heard.size / PACKET)
        heard = conceal(heard, lost_packets(packets, line.loss, line.burst, generator))
    return _fit(resample(heard, LINE_RATE, SAMPLE_RATE), samples.size)


def gain(samples: Samples, gain_db: float) -> Samples:
    """Louder or softer, not clipped."""
    return samples * np.float32(10.0 ** (gain_db / 20))


def to_line(samples: Samples) -> Int16:
    """Float samples as linear 16-bit ones, clipped."""
    linear: Int16 = np.rint(samples * 32768.0).clip(-32768, 32767).astype(np.int16)
    return linear


def from_line(linear: Int16) -> Samples:
    return linear.astype(np.float32) / np.float32(32768.0)


# --- G.711 ---


def encode_g711(linear: Int16, law: Law) -> Codes:
    """Linear 16-bit samples as G.711 codes, one byte each, as they stand in RTP."""
    table: Codes = _encoding(law)[linear.view(np.uint16)]
    return table


def decode_g711(codes: Codes, law: Law) -> Int16:
    """G.711 codes as linear 16-bit samples."""
    table: Int16 = _decoding(law)[codes]
    return table


def _decision_values(law: Law) -> npt.NDArray[np.int32]:
    """The 129 values between which a magnitude has one code [ITU-T G.711, tables 1a and 2a], at 16-bit scale.

    Eight chords of 16 steps: in each chord steps are twice as wide as in the one before, but in A-law's second
    chord, which goes on with the steps of the first. mu-law's very first step is half a step.
    """
    wide = [1, 1, 2, 4, 8, 16, 32, 64] if law == "a" else [1, 2, 4, 8, 16, 32, 64, 128]
    steps = np.repeat(np.array(wide) * 2, 16)
    if law == "mu":
        steps[0] = 1
    return (np.concatenate(([0], np.cumsum(steps))) * (8 if law == "a" else 4)).astype(np.int32)


@cache
def _decoding(law: Law) -> Int16:
    """[256]: a code's level lies in the middle of its step; mu-law's first one is 0."""
    values = _decision_values(law)
    levels = (values[:-1] + values[1:]) // 2
    if law == "mu":
        levels[0] = 0
    table = np.zeros(256, np.int16)
    table[_code(law, np.arange(128), negative=False)] = levels
    table[_code(law, np.arange(128), negative=True)] = -levels
    return table


@cache
def _encoding(law: Law) -> Codes:
    """[65536], by the sample's 16 bits read as unsigned."""
    linear = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    magnitude = np.where(linear < 0, ~linear, linear)  # so that a value on the border of two steps goes up
    step = np.searchsorted(_decision_values(law)[1:-1], magnitude, side="right")
    codes = np.where(linear < 0, _code(law, step, negative=True), _code(law, step, negative=False))
    return codes.astype(np.uint8)


def _code(law: Law, step: npt.NDArray[np.int_], *, negative: bool) -> npt.NDArray[np.int_]:
    """A step's number 0 to 127 as it is sent: mu-law inverts all bits, A-law every other one."""
    if law == "mu":
        return (0x7F if negative else 0xFF) - step
    return (step if negative else step | 0x80) ^ 0x55


# --- rates and the band ---


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """[n] at one rate as [ceil(n * to_hz / from_hz)] at the other, by a polyphase filter; not shifted in time."""
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"rates must be above 0, not {from_hz} and {to_hz}")
    if from_hz == to_hz or not samples.size:
        return samples.astype(np.float32)
    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    phases = _phases(up, down)  # [up, taps]
    taps = phases.shape[1]
    length = -(-samples.size * up // down)
    padded = np.pad(samples.astype(np.float32), (taps // 2 - 1, taps // 2 + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    result = np.empty(length, np.float32)
    # Output n lies at n * down / up of the input: outputs n, n + up, n + 2 up … share a phase, `down` samples apart.
    for n in range(min(up, length)):
        first, phase = divmod(n * down, up)
        count = -(-(length - n) // up)
        result[n::up] = np.einsum("ij,j->i", windows[first::down][:count], phases[phase])
    return result


@cache
def _phases(up: int, down: int) -> Samples:
    """[up, taps]: a windowed sinc, cut into the filters of the positions 0, 1/up … between two input samples."""
    wide = max(1.0, down / up)  # when the rate falls, the filter is as much longer as the band is narrower
    taps = 2 * math.ceil(_TAPS * wide / 2)
    cut = 0.955 / wide  # share of the input's band that is kept, at -6 dB
    offset = np.arange(taps)[None] - (taps // 2 - 1) - (np.arange(up) / up)[:, None]
    window = np.i0(_BETA * np.sqrt(np.maximum(0.0, 1 - (offset / (taps / 2)) ** 2))) / np.i0(_BETA)
    phases = cut * np.sinc(cut * offset) * window
    normalised: Samples = (phases / phases.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def phone_band(narrow: Samples) -> Samples:
    """What a phone carries of sound at LINE_RATE: 300 to 3400 Hz."""
    if not narrow.size:
        return narrow
    return _fit(np.convolve(narrow, _band_filter())[_BAND_TAPS // 2:], narrow.size)


@cache
def _band_filter() -> Samples:
    offset = np.arange(_BAND_TAPS) - _BAND_TAPS // 2
    low, high = (2 * hz / LINE_RATE for hz in _BAND_HZ)
    taps: Samples = (high * np.sinc(high * offset) - low * np.sinc(low * offset)).astype(np.float32)
    return taps * np.kaiser(_BAND_TAPS, 5.0).astype(np.float32)


# --- lost packets ---


def lost_packets(count: int, loss: float, burst: float, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """[count], True where a packet is lost: a share of `loss`, `burst` in a row on average (Gilbert's model)."""
    lost = np.zeros(count, np.bool_)
    if not 0 < loss < 1:
        return lost
    begins = min(1.0, loss / (burst * (1 - loss)))  # the chance after a packet that arrived
    draws = generator.random(count)
    state = bool(generator.random() < loss)
    for packet in range(count):
        state = bool(draws[packet] >= 1 / burst) if state else bool(draws[packet] < begins)
        lost[packet] = state
    return lost


def conceal(samples: Samples, lost: npt.NDArray[np.bool_]) -> Samples:
    """Fill lost packets as a phone does (after ITU-T G.711, appendix I): the last pitch period is repeated, fades
    from 10 ms on and is silent after 60 ms; both ends are blended in. (The blend before the gap is why a phone that
    conceals so delays all sound by 3.75 ms; here it costs nothing.)

    samples: [n] at LINE_RATE; lost: [ceil(n / PACKET)].
    """
    if lost.size != math.ceil(samples.size / PACKET):
        raise ValueError(f"{samples.size} samples are {math.ceil(samples.size / PACKET)} packets, not {lost.size}")
    result = samples.copy()
    for begin, end in _runs(lost):
        first, last = begin * PACKET, min(samples.size, end * PACKET)
        # The longer the gap, the longer the blend: 4 ms and as much again for each 10 ms, at most 10 ms.
        blend = min(samples.size - last, 80, 32 + (last - first) // 80 * 32)
        turned, made = _continued(result[:first], last - first + blend)
        result[first - turned.size:first] = turned
        result[first:last] = made[:last - first]
        rising = np.linspace(0, 1, blend, dtype=np.float32)
        result[last:last + blend] = rising * result[last:last + blend] + (1 - rising) * made[last - first:]
    return result


def _runs(lost: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """The runs of True, as [begin, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], lost, [False]))))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _continued(heard: Samples, length: int) -> tuple[Samples, Samples]:
    """`heard`'s last quarter of a pitch period, turned so that the period can follow itself without a click, and
    `length` samples that go on there. Nothing but silence where too little has been heard."""
    needed = _COMPARED + _LONGEST_PITCH
    if heard.size < needed:
        return heard[:0], np.zeros(length, np.float32)
    recent = heard[-needed:]
    pitch = _pitch(recent)
    quarter = pitch // 4
    cycle = recent[-pitch:].copy()
    # The last quarter turns into what came before the period's first sample.
    rising = np.linspace(0, 1, quarter, dtype=np.float32)
    cycle[-quarter:] = (1 - rising) * cycle[-quarter:] + rising * recent[-pitch - quarter:-pitch]
    fading = 1 - (np.arange(length, dtype=np.float32) - _FULL_TONE) / (_FADED - _FULL_TONE)
    going_on: Samples = np.resize(cycle, length) * fading.clip(0, 1)
    return cycle[-quarter:], going_on


def _pitch(recent: Samples) -> int:
    """The lag, in samples, at which the last 20 ms look most like what came before them."""
    now = recent[-_COMPARED:]
    windows = np.lib.stride_tricks.sliding_window_view(recent, _COMPARED)
    before = windows[-1 - _LONGEST_PITCH:-_SHORTEST_PITCH]  # [lags, compared], the longest lag first
    likeness = (before @ now) / np.sqrt((before * before).sum(axis=1) + 1e-6)
    return _LONGEST_PITCH - int(np.argmax(likeness))


def _fit(samples: Samples, length: int) -> Samples:
    """Cut, or filled up with silence, to `length`."""
    return samples[:length] if samples.size >= length else np.pad(samples, (0, length - samples.size))
