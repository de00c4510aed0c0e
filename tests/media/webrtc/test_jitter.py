from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.webrtc.jitter import (
    LONGEST_GAP,
    MOST_WAITING,
    TICK,
    WINDOW_TICKS,
    JitterBuffer,
    Missing,
    Packet,
    opus_samples,
)

CELT_20_MS = 0xF8  # configuration 31, one frame


def packet(number: int) -> bytes:
    """20 ms of Opus, told apart by its content."""
    return bytes([CELT_20_MS, *number.to_bytes(4, "big")])


def number(item: object) -> int | str:
    """What was played: the packet's number, or why none was."""
    match item:
        case Packet(payload):
            return int.from_bytes(payload[1:], "big")
        case Missing():
            return "lost"
        case None:
            return "nothing"
    raise AssertionError(item)


class Line:
    """A buffer whose clock the test turns."""

    def __init__(self, first: int = 0) -> None:
        self.buffer = JitterBuffer()
        self.first = first
        self.played: list[int | str] = []

    def push(self, *numbers: int) -> None:
        for each in numbers:
            self.buffer.push((self.first + each * TICK) % 2**32, packet(each))

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.played.append(number(self.buffer.next()))
            self.buffer.ticked()


def test_packets_are_played_at_the_tick_after_their_arrival() -> None:
    line = Line()
    for each in range(5):
        line.push(each)
        line.tick()
    assert line.played == [0, 1, 2, 3, 4]


def test_nothing_is_played_before_the_first_packet_and_that_counts_as_no_loss() -> None:
    line = Line()
    line.tick(3)
    line.push(0)
    line.tick()
    assert line.played == ["nothing"] * 3 + [0]
    assert line.buffer.counts.waited == 0


def test_a_lost_packet_takes_its_time_and_adds_no_delay() -> None:
    line = Line()
    for each in range(10):
        if each != 4:
            line.push(each)
        line.tick()
    assert line.played == [0, 1, 2, 3, "nothing", 5, 6, 7, 8, 9]
    assert line.buffer.queued == 0


def test_a_lost_packet_is_known_where_the_next_one_waits() -> None:
    line = Line()
    line.push(0, 1)
    for each in range(2, 10):
        if each != 5:
            line.push(each)
        line.tick()
    assert line.played == [0, 1, 2, 3, 4, "lost", 6, 7]
    assert line.buffer.counts.lost == 1


def test_a_packet_that_is_late_is_played_when_it_comes_and_the_delay_grows() -> None:
    line = Line()
    line.push(0)
    line.tick(2)
    line.push(1, 2)
    line.tick(2)
    assert line.played == [0, "nothing", 1, 2]


def test_packets_in_the_wrong_order_are_put_right_while_they_wait() -> None:
    line = Line()
    line.push(0, 1, 3, 2)
    line.tick(4)
    assert line.played == [0, 1, 2, 3]


def test_a_packet_whose_time_has_passed_is_left_out() -> None:
    line = Line()
    line.push(0, 2)
    line.tick(3)
    line.push(1, 3)
    line.tick()
    assert line.played == [0, "lost", 2, 3]
    assert line.buffer.counts.late == 1


def test_a_packet_that_comes_twice_is_played_once() -> None:
    line = Line()
    line.push(0, 1, 1)
    line.tick(3)
    assert line.played == [0, 1, "nothing"]


def test_a_silent_sender_whose_timestamps_go_on_adds_no_delay() -> None:
    line = Line()
    line.push(0)
    line.tick(1 + 500)
    line.push(501)
    line.tick()
    assert line.played[-1] == 501
    assert line.buffer.queued == 0


def test_a_silent_sender_whose_timestamps_stand_still_adds_no_delay() -> None:
    line = Line()
    line.push(0)
    line.tick(1 + 500)
    line.push(1)
    line.tick()
    assert line.played[-1] == 1


def test_timestamps_wrap_around() -> None:
    line = Line(first=2**32 - 2 * TICK)
    for each in range(5):
        line.push(each)
        line.tick()
    assert line.played == [0, 1, 2, 3, 4]


def test_a_jump_of_timestamps_begins_anew() -> None:
    line = Line()
    line.push(0)
    line.tick()
    far = LONGEST_GAP // TICK + 100
    line.push(far, far + 1)
    line.tick(2)
    assert line.played == [0, far, far + 1]


def test_many_packets_at_once_leave_the_newest() -> None:
    line = Line()
    line.push(0)
    line.tick(1 + 50)
    line.push(*range(1, 51))
    assert line.buffer.queued <= MOST_WAITING
    line.tick()
    assert isinstance(line.played[-1], int)
    assert line.played[-1] > 35
    assert line.buffer.counts.shed > 30


def test_delay_that_was_not_needed_may_be_given_back_and_no_more_than_that() -> None:
    line = Line()
    line.push(0, 1, 2)
    for each in range(3, 3 + WINDOW_TICKS):
        assert not line.buffer.may_shed
        line.push(each)
        line.tick()
    assert line.buffer.may_shed
    for _ in range(3):
        line.buffer.shed()
    assert not line.buffer.may_shed


def test_delay_that_is_needed_stays() -> None:
    line = Line()
    line.push(0, 1)
    for each in range(2, 2 + 3 * WINDOW_TICKS, 2):  # they come in pairs
        line.tick(2)
        line.push(each, each + 1)
        assert not line.buffer.may_shed


@given(st.lists(st.sampled_from(["come", "lost", "late"]), min_size=1, max_size=200), st.integers(0, 2**32 - 1),
       st.randoms(use_true_random=False))
def test_whatever_the_network_does_packets_are_played_in_order_and_few_wait(
    fates: list[str], first: int, draw: random.Random,
) -> None:
    line = Line(first)
    late: list[int] = []
    for each, fate in enumerate(fates):
        if fate == "come":
            line.push(each)
        elif fate == "late":
            late.append(each)
        if late and draw.random() < 0.5:
            line.push(late.pop(draw.randrange(len(late))))
        line.tick()
        assert line.buffer.queued <= MOST_WAITING
    played = [each for each in line.played if isinstance(each, int)]
    assert played == sorted(set(played))


@pytest.mark.parametrize(("payload", "samples"), [
    (bytes([0 << 3]), 480), (bytes([3 << 3]), 2880), (bytes([13 << 3]), 960), (bytes([16 << 3]), 120),
    (bytes([31 << 3]), 960), (bytes([31 << 3 | 1]), 1920), (bytes([31 << 3 | 3, 3]), 2880), (b"", 0),
    (bytes([3 << 3 | 3, 63]), 0), (bytes([31 << 3 | 3]), 0)])
def test_how_long_a_packet_sounds_is_read_from_its_first_bytes(payload: bytes, samples: int) -> None:
    assert opus_samples(payload) == samples


def test_what_is_no_packet_is_left_out() -> None:
    line = Line()
    line.buffer.push(0, b"")
    line.tick()
    assert line.played == ["nothing"]
    assert line.buffer.counts.received == 0
