from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scheduler import FRAMES_WAITING, GATHER_US, Frame, Scheduler

PERIOD_US = 80_000
CHUNK_US = 20_000


def _scheduler(*slots: int) -> Scheduler[bytes]:
    scheduler: Scheduler[bytes] = Scheduler(PERIOD_US)
    for slot in slots:
        scheduler.join(slot, 0)
    return scheduler


def _frame(k: int, at_us: int) -> Frame[bytes]:
    return Frame(k, b"", at_us)


def test_a_lone_call_never_waits() -> None:
    scheduler = _scheduler(3)
    for k in range(5):
        now = k * PERIOD_US
        scheduler.add(3, _frame(k, now))
        assert scheduler.due(now) == [3]
        assert [frame.k for frame in scheduler.take([3])] == [k]


def test_calls_that_are_expected_soon_step_together() -> None:
    scheduler = _scheduler(0, 1)
    for slot, at_us in ((0, 0), (1, 15_000)):
        scheduler.add(slot, _frame(0, at_us))
        scheduler.take([slot])
    scheduler.add(0, _frame(1, PERIOD_US))
    assert scheduler.due(PERIOD_US) == []
    assert scheduler.wait_us(PERIOD_US) == GATHER_US
    scheduler.add(1, _frame(1, PERIOD_US + 15_000))
    assert scheduler.due(PERIOD_US + 15_000) == [0, 1]


def test_a_call_out_of_phase_isnt_waited_for() -> None:
    scheduler = _scheduler(0, 1)
    for slot, at_us in ((0, 0), (1, 40_000)):
        scheduler.add(slot, _frame(0, at_us))
        scheduler.take([slot])
    scheduler.add(0, _frame(1, PERIOD_US))
    assert scheduler.due(PERIOD_US) == [0]


def test_a_call_that_stays_away_holds_the_others_up_once_at_most() -> None:
    scheduler = _scheduler(0, 1)
    for slot in (0, 1):
        scheduler.add(slot, _frame(0, 0))
    scheduler.take([0, 1])
    waits = []
    for k in range(1, 4):
        scheduler.add(0, _frame(k, k * PERIOD_US))
        waits.append(scheduler.wait_us(k * PERIOD_US))
        scheduler.take([0])
    assert waits == [GATHER_US, 0, 0]


def test_the_third_frame_that_waits_drops_the_oldest_and_is_counted() -> None:
    scheduler = _scheduler(0)
    assert [scheduler.add(0, _frame(k, k)) for k in range(FRAMES_WAITING + 2)] == [None, None, 0, 1]
    assert [frame.k for frame in scheduler.take([0])] == [2]
    assert scheduler.leave(0) == 2


def test_a_slot_is_joined_once() -> None:
    scheduler = _scheduler(0)
    with pytest.raises(ValueError, match="slot 0 is taken"):
        scheduler.join(0, 0)


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_calls_of_random_phases_take_one_step_a_period(seed: int, calls: int) -> None:
    """Each call's chunks tick at a phase of its own; it begins frame 0 as many chunks late as the boundary asks."""
    draw = random.Random(seed)
    scheduler = _scheduler()
    arrivals: list[tuple[int, int]] = []  # of frames to come: (when, slot)
    steps_us: list[int] = []

    def run(now: int, end_us: int) -> None:
        """The device takes no time; it wakes at each arrival and at each deadline."""
        while True:
            wait = scheduler.wait_us(now)
            wakes = [at for at, _ in arrivals[:1]] + ([now + wait] if wait is not None else [])
            if not wakes or min(wakes) >= end_us:
                return
            now = min(wakes)
            while arrivals and arrivals[0][0] == now:
                at, slot = heapq.heappop(arrivals)
                scheduler.add(slot, _frame(0, at))
                heapq.heappush(arrivals, (at + PERIOD_US, slot))
            if due := scheduler.due(now):
                scheduler.take(due)
                steps_us.append(now)

    answered_us = 0
    for slot in range(calls):
        before_us, answered_us = answered_us, answered_us + draw.randrange(1, 3 * PERIOD_US)
        run(before_us, answered_us)
        to_boundary = scheduler.join(slot, answered_us)
        chunk_us = draw.randrange(CHUNK_US)  # to its next chunk's end, which is the first frame's if it begins now
        silence = (to_boundary - chunk_us) % PERIOD_US // CHUNK_US
        heapq.heappush(arrivals, (answered_us + chunk_us + silence * CHUNK_US, slot))
    settled_us = answered_us + 3 * PERIOD_US
    run(answered_us, settled_us)
    steps_us.clear()
    run(settled_us, settled_us + 10 * PERIOD_US)
    assert 9 <= len(steps_us) <= 11
