"""Labels of moments: what is spoken then, or silence."""

from __future__ import annotations

import numpy as np
import pytest

from agent.train.phone_labels import SILENCE, labels_at, phone_label
from agent.train.phones import PHONES
from agent.train.render import Word

ONE, OTHER = PHONES[:2]


def spoken(*parts: tuple[str, float, float]) -> list[Word]:
    return [Word("caller", text, begin_s, end_s) for text, begin_s, end_s in parts]


@pytest.mark.parametrize(("parts", "expected"), [
    ([], [SILENCE] * 4),
    ([(ONE, 0.15, 0.25)], [SILENCE, phone_label(ONE), SILENCE, SILENCE]),
    ([(ONE, 0.0, 0.195), (OTHER, 0.2, 0.4)], [phone_label(ONE)] * 2 + [phone_label(OTHER)] * 2),
    ([(ONE, 0.0, 0.15), (OTHER, 0.25, 0.4)], [phone_label(ONE), SILENCE, phone_label(OTHER), phone_label(OTHER)]),
])
def test_a_moments_label_is_what_is_spoken_then(parts: list[tuple[str, float, float]], expected: list[int]) -> None:
    assert labels_at(np.array([0.1, 0.199, 0.3, 0.35]), spoken(*parts)).tolist() == expected
