"""Whether a device keeps up, by what its steps took."""

from __future__ import annotations

from agent.admission import LOAD_WINDOW_US, MOVE_EVERY_S, Load, Overload, Verdict


def _after(share: float) -> Load:
    """A device that has stepped for this share of the window, once in 80 ms."""
    load = Load()
    for at_us in range(0, LOAD_WINDOW_US, 80_000):
        load.stepped(at_us + 80_000, round(share * 80_000))
    return load


def test_the_load_is_the_share_of_the_last_seconds_that_steps_took() -> None:
    load = _after(0.5)
    assert abs(load.share(LOAD_WINDOW_US) - 0.5) < 0.02
    assert abs(load.share(LOAD_WINDOW_US * 3 // 2) - 0.25) < 0.02
    assert load.share(3 * LOAD_WINDOW_US) == 0


def test_a_device_that_steps_each_call_by_itself_is_as_loaded_as_they_take_together() -> None:
    load = Load()
    for at_us in range(0, LOAD_WINDOW_US, 20_000):
        load.stepped(at_us + 20_000, 15_000)
    assert abs(load.share(LOAD_WINDOW_US) - 0.75) < 0.02


def test_new_calls_are_turned_away_first_then_calls_go_one_by_one() -> None:
    overload = Overload()
    assert overload.judge(0.85, 0.0) is Verdict.OPEN
    assert overload.judge(0.92, 1.0) is Verdict.FULL
    assert overload.judge(1.0, 2.0) is Verdict.TOO_MUCH
    assert overload.judge(1.0, 3.0) is Verdict.FULL, "the first one's going may be enough"
    assert overload.judge(1.0, 2.0 + MOVE_EVERY_S) is Verdict.TOO_MUCH


def test_a_full_device_takes_calls_again_when_there_is_room_for_one() -> None:
    overload = Overload()
    shares = (0.92, 0.85, 0.79, 0.85)
    assert [overload.judge(share, at) for at, share in enumerate(shares)] == [
        Verdict.FULL, Verdict.FULL, Verdict.OPEN, Verdict.OPEN]
