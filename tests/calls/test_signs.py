"""Signs of a broken conversation: told once they last, once each, and not for what healthy calls measure."""

from __future__ import annotations

import math

import pytest

from calls.signs import HOLD_STEPS, WINDOW, Sign, Signs

HEALTHY = (1.0, 2.5, 0.06)


def told(signs: Signs, steps: int, *measured: float) -> list[tuple[int, Sign]]:
    """In which of so many steps that measure this a sign is told."""
    found = [(step, signs.feed(*measured)) for step in range(steps)]
    return [(step, sign) for step, sign in found if sign is not None]


def healthy(signs: Signs, steps: int) -> list[Sign | None]:
    """Entropies go up and down as in a real call."""
    return [signs.feed(1.0 + 0.5 * math.sin(step / 10), 2.5, 0.06) for step in range(steps)]


@pytest.mark.parametrize(("sign", "measured"), [
    ("gibberish", (3.6, 2.5, 0.1)), ("noise", (0.0, 2.1, 0.1)), ("noisy sound", (1.0, 2.5, 0.61))])
def test_a_sign_is_told_once_when_it_has_lasted(sign: Sign, measured: tuple[float, float, float]) -> None:
    signs = Signs()
    assert not any(healthy(signs, 100))
    assert told(signs, 500, *measured) == [(HOLD_STEPS - 1, sign)]
    assert not any(healthy(signs, HOLD_STEPS - 1))
    assert not told(signs, 100, *measured)  # it wasn't gone for long enough
    assert not any(healthy(signs, HOLD_STEPS + 5))
    assert told(signs, 100, *measured) == [(HOLD_STEPS - 1, sign)]


def test_a_text_that_goes_in_a_loop_is_repetition() -> None:
    signs = Signs()
    assert not any(healthy(signs, 100))
    (step, sign), = told(signs, 300, *HEALTHY)  # the entropy of a loop stands still
    assert sign == "repetition"
    assert WINDOW <= step + 1 <= WINDOW + HOLD_STEPS


def test_listening_is_no_sign() -> None:
    signs = Signs()
    assert not told(signs, 1000, 0.0, 1.9, 0.1)


def test_nothing_is_told_before_the_window_is_full() -> None:
    assert not told(Signs(), WINDOW - 1 + HOLD_STEPS - 1, 4.0, 2.5, 0.1)
    assert told(Signs(), WINDOW - 1 + HOLD_STEPS, 4.0, 2.5, 0.1)


def test_a_glimpse_is_no_sign() -> None:
    signs = Signs()
    assert not any(healthy(signs, 100))
    for _ in range(20):
        assert not told(signs, HOLD_STEPS - 1, 4.0, 2.5, 0.1)
        assert not any(healthy(signs, 3))
