from __future__ import annotations

import numpy as np
import pytest

from media.resample import Halver

RATE = 48_000


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(RATE * seconds)) / RATE)


def level(samples: np.ndarray) -> float:
    return 20 * float(np.log10(np.sqrt(np.mean(samples[1000:] ** 2)) / (0.5 / 2**0.5)))


@pytest.mark.parametrize("hz", [200, 1000, 4000, 8000, 9500])
def test_what_we_can_carry_passes_as_it_is(hz: float) -> None:
    assert abs(level(Halver()(tone(hz)))) < 0.2


@pytest.mark.parametrize("hz", [13_000, 15_000, 20_000])
def test_what_we_cannot_carry_leaves_no_image(hz: float) -> None:
    assert level(Halver()(tone(hz))) < -65


def test_blocks_make_the_same_stream_as_one_piece() -> None:
    noise = np.random.default_rng(1).standard_normal(9600)
    halver = Halver()
    blocks = np.concatenate([halver(block) for block in np.split(noise, 10)])
    assert np.allclose(blocks, Halver()(noise), atol=1e-6)


def test_an_odd_number_of_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        Halver()(np.zeros(3))
