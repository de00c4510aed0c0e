"""Tones in a caller's sound: the keys of a telephone (ITU-T Q.23, Q.24), and an answering machine's (pure).

Fed 20 ms at a time. Frequencies are looked at by projections on them, as Goertzel's algorithm does, all at once.
"""

from __future__ import annotations

import numpy as np

from media.audio import CHUNK, CHUNK_S, SAMPLE_RATE, Samples

ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477, 1633)
KEYS = ("123A", "456B", "789C", "*0#D")
LEAST_LEVEL = 10 ** (-36 / 20) / 2**0.5  # rms of both tones together
LEAST_SHARE = 0.75  # of the energy that the two tones have
TWIST_DB = 8.0  # that one may be louder than the other
OVER_OTHERS = 3.0  # that a tone has more energy than the next one of its four
KEY_CHUNKS = 2  # in a row that tell one key
PAUSE_CHUNKS = 2  # without it, after which it is pressed again

TONE_BAND = (350.0, 2500.0)
TONE_LEVEL = 10 ** (-40 / 20) / 2**0.5
TONE_SHARE = 0.85  # of the energy, in the band's peak
TONE_S = 0.16  # so long is no vowel so pure
DRIFT_HZ = 30.0

_TIMES = np.arange(CHUNK) / SAMPLE_RATE
# Each tone may be off by 1.5 % (Q.24), so it is looked for in three places.
_ANGLES = 2 * np.pi * np.outer(np.outer((*ROWS, *COLUMNS), (0.988, 1.0, 1.012)), _TIMES)
_PROBES: Samples = (np.concatenate([np.cos(_ANGLES), np.sin(_ANGLES)]) / CHUNK).astype(np.float32)
_WINDOW = np.hanning(CHUNK)
_BINS = 2048
_HZ = SAMPLE_RATE / _BINS
_LOBE = round(2 * SAMPLE_RATE / CHUNK / _HZ)  # half the width of the window's main lobe, in bins


class Keypad:
    """Keys in the sound of one caller."""

    def __init__(self) -> None:
        self._candidate, self._chunks = "", 0
        self._pressed, self._without = "", 0

    def hear(self, samples: Samples) -> str | None:
        """20 ms; the key that is pressed from now on, once."""
        key = _key(samples)
        if self._pressed:
            self._without = 0 if key == self._pressed else self._without + 1
            if self._without >= PAUSE_CHUNKS:
                self._pressed = ""
        self._chunks = self._chunks + 1 if key and key == self._candidate else int(bool(key))
        self._candidate = key
        if self._chunks < KEY_CHUNKS or key == self._pressed:
            return None
        self._pressed, self._without = key, 0
        return key


def _key(samples: Samples) -> str:
    """The key whose two tones these 20 ms are; none for anything else."""
    energy = float(samples @ samples) / CHUNK
    if energy < LEAST_LEVEL**2:
        return ""
    # a real tone of amplitude A projects as A / 2, its energy is A^2 / 2
    squares: Samples = (_PROBES @ samples) ** 2
    powers: Samples = 2 * (squares[:24] + squares[24:]).reshape(-1, 3).max(axis=1)
    row, column = int(powers[:4].argmax()), int(powers[4:].argmax())
    low, high = powers[row], powers[4 + column]
    if low + high < LEAST_SHARE * energy or abs(10 * np.log10(low / high)) > TWIST_DB:
        return ""
    others = max(np.delete(powers[:4], row).max(), 1e-12), max(np.delete(powers[4:], column).max(), 1e-12)
    if low < OVER_OTHERS * others[0] or high < OVER_OTHERS * others[1]:
        return ""
    return KEYS[row][column]


class Beep:
    """A machine's tone: one frequency, for some time, at one height."""

    def __init__(self) -> None:
        self._hertz, self._seconds = 0.0, 0.0

    def hear(self, samples: Samples) -> float | None:
        """20 ms; how long a tone was, once it has ended."""
        hertz = _single_tone(samples)
        goes_on = hertz is not None and (not self._seconds or abs(hertz - self._hertz) < DRIFT_HZ)
        if goes_on and hertz is not None:
            self._hertz, self._seconds = hertz, self._seconds + CHUNK_S
            return None
        ended, self._seconds = self._seconds, 0.0 if hertz is None else CHUNK_S
        self._hertz = hertz or 0.0
        return ended if ended >= TONE_S - CHUNK_S / 2 else None


def _single_tone(samples: Samples) -> float | None:
    """The one frequency of these 20 ms; None where it isn't one."""
    if float(np.mean(samples.astype(np.float64) ** 2)) < TONE_LEVEL**2:
        return None
    spectrum = np.abs(np.fft.rfft(samples * _WINDOW, _BINS)) ** 2
    peak = int(spectrum.argmax())
    hertz = peak * _HZ
    if not TONE_BAND[0] <= hertz <= TONE_BAND[1]:
        return None
    near = spectrum[max(0, peak - _LOBE):peak + _LOBE + 1].sum()
    return hertz if near >= TONE_SHARE * spectrum.sum() else None
