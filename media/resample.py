"""From 48 kHz, the rate at which Opus is decoded, to ours, as a stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from media.audio import Samples

_TAPS = 63  # delay: 0.65 ms
_CUT_HZ, _FROM_HZ, _BETA = 11_200, 48_000, 6.8  # -6 dB there; -70 dB above 12.9 kHz


def _low_pass() -> Samples:
    offset = np.arange(_TAPS) - _TAPS // 2
    share = 2 * _CUT_HZ / _FROM_HZ
    taps = share * np.sinc(share * offset) * np.kaiser(_TAPS, _BETA)
    normalised: Samples = (taps / taps.sum()).astype(np.float32)
    return normalised


class Halver:
    """48 kHz -> 24 kHz; what one block needs of the one before it is kept."""

    def __init__(self) -> None:
        self._taps = _low_pass()
        self._before: Samples = np.zeros(_TAPS - 1, np.float32)

    def __call__(self, samples: npt.NDArray[np.floating]) -> Samples:
        """[2 n] -> [n]; the same as if all blocks were one."""
        if samples.size % 2:
            raise ValueError(f"an even number of samples, not {samples.size}")
        joined = np.concatenate([self._before, samples.astype(np.float32)])
        self._before = joined[joined.size - (_TAPS - 1):].copy()
        halved: Samples = np.convolve(joined, self._taps, "valid")[::2]  # faster than every second window alone
        return halved
