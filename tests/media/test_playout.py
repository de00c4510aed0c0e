from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.audio import CHUNK, CHUNK_BYTES, CHUNK_S, FRAME_BYTES, SILENT_CHUNK, to_pcm16
from media.playout import CLEAN_TICKS, HARD_BOUND, IN_HAND, IN_HAND_SHAKY, MOST_QUEUED, SPARE_S, Playout

LOUD = 8000


def frame(k: int, level: int = LOUD) -> bytes:
    """Four pieces whose middle samples tell which they are: level + 4 k + i."""
    return b"".join(np.full(CHUNK, level + 4 * k + i, "<i2").tobytes() for i in range(4))


def told(piece: bytes, level: int = LOUD) -> int | None:
    """Which piece of the agent's stream this is, None for silence."""
    middle = int(np.frombuffer(piece, "<i2")[CHUNK // 2])
    return middle - level if middle else None


def push(playout: Playout, k: int, pcm: bytes, after_tick_s: float = 0.001) -> bool:
    """The frame comes so long after the last tick."""
    return playout.push(k, pcm, (playout.tick - 1) * CHUNK_S + after_tick_s)


def pop(playout: Playout) -> bytes:
    return playout.pop(playout.tick * CHUNK_S)


def run(playout: Playout, ticks: int) -> list[int | None]:
    return [told(pop(playout)) for _ in range(ticks)]


def steady(playout: Playout, first_k: int, last_k: int) -> list[int | None]:
    """Frames on time, one every four ticks."""
    heard = []
    for k in range(first_k, last_k + 1):
        push(playout, k, frame(k))
        heard += run(playout, 4)
    return heard


def test_silence_is_heard_as_long_as_the_agent_has_nothing() -> None:
    playout = Playout()
    assert [pop(playout) for _ in range(20)] == [SILENT_CHUNK] * 20
    assert playout.counts.underruns == 0


def test_one_piece_is_in_hand_when_the_next_frame_comes() -> None:
    playout = Playout()
    run(playout, 6)
    assert steady(playout, 0, 2) == [None, *range(11)]
    assert playout.queued == 1
    assert playout.counts.underruns == 0


def test_the_time_at_which_a_frame_is_heard_is_known_to_the_sample() -> None:
    playout = Playout(first_tick=2)
    run(playout, 6)
    steady(playout, 0, 2)
    heard = {item.k: item.sample for item in playout.take_heard()}
    assert heard == {0: (2 + 6 + 1) * CHUNK, 1: (2 + 10 + 1) * CHUNK, 2: (2 + 14 + 1) * CHUNK}
    assert playout.take_heard() == []


def test_a_frame_that_is_20_ms_late_is_not_noticed() -> None:
    playout = Playout()
    heard = steady(playout, 0, 0) + run(playout, 1) + steady(playout, 1, 2)
    assert heard == [None, *range(12)]
    assert playout.counts.underruns == 0


def test_a_late_frame_is_waited_for_and_loses_nothing() -> None:
    playout = Playout()
    heard = steady(playout, 0, 0) + run(playout, 3) + steady(playout, 1, 1)
    assert heard == [None, 0, 1, 2, 3, None, None, 4, 5, 6, 7]
    assert playout.counts.underruns == 1
    assert playout.counts.missing == 0


def test_a_frame_that_never_comes_leaves_its_80_ms_silent_and_shifts_nothing() -> None:
    playout = Playout()
    steady(playout, 0, 1)
    run(playout, 4)  # nothing for frame 2
    heard = steady(playout, 3, 4)
    position = [piece for piece in heard if piece is not None]
    assert position == list(range(12, 12 + len(position)))
    assert heard[:1] == [None], "frame 3 begins where it would have begun"
    assert playout.counts.missing == 1
    sample = {item.k: item.sample for item in playout.take_heard()}
    assert sample[3] - sample[0] == 3 * 4 * CHUNK


def test_a_gap_that_is_known_at_once_is_silent_for_exactly_its_length() -> None:
    playout = Playout()
    push(playout, 0, frame(0))
    push(playout, 2, frame(2))
    assert run(playout, 13) == [None, 0, 1, 2, 3, None, None, None, None, 8, 9, 10, 11]


def test_a_frame_that_comes_twice_or_out_of_order_is_refused_and_changes_nothing() -> None:
    playout = Playout()
    push(playout, 3, frame(3))
    assert not push(playout, 3, frame(9))
    assert not push(playout, 1, frame(1))
    assert run(playout, 6) == [None, 12, 13, 14, 15, None]
    assert playout.counts.refused == 2
    with pytest.raises(ValueError, match="3840 bytes, not 3"):
        push(playout, 4, b"abc")


def test_two_underruns_within_5_s_put_two_pieces_in_hand_and_10_clean_seconds_take_one_back() -> None:
    playout = Playout()
    steady(playout, 0, 0)
    run(playout, 2)
    steady(playout, 1, 3)
    assert playout.in_hand == 1
    run(playout, 3)
    assert playout.in_hand == 2
    heard = steady(playout, 4, 4)
    assert heard[0] is None, "one more piece is waited for"
    steady(playout, 5, 5 + CLEAN_TICKS // 4)
    assert playout.in_hand == 1


def quiet(playout: Playout, frames: int, after_tick_s: float) -> None:
    """Frames on time, so long after their tick, and quiet, so that pieces may go."""
    for k in range(playout.tick // 4, playout.tick // 4 + frames):
        push(playout, k, frame(k, level=-4 * k), after_tick_s)
        run(playout, 4)


def test_a_call_that_begins_with_two_pieces_in_hand_gives_one_back_when_the_way_is_calm() -> None:
    playout = Playout(in_hand=IN_HAND_SHAKY)
    assert steady(playout, 0, 1) == [None, None, *range(6)]
    quiet(playout, CLEAN_TICKS // 4, 0.001)
    assert (playout.in_hand, playout.queued, playout.counts.shed) == (1, 1, 1)


def test_none_is_in_hand_where_frames_wait_long_enough_for_their_tick_all_the_same() -> None:
    playout, loaded, careful = Playout(), Playout(), Playout(least=IN_HAND)
    frames = CLEAN_TICKS // 4 + 2
    quiet(playout, frames, 0.001)
    quiet(careful, frames, 0.001)
    quiet(loaded, frames, CHUNK_S - SPARE_S + 0.001)
    assert (playout.in_hand, playout.queued, playout.counts.shed) == (0, 0, 1)
    for other in (loaded, careful):
        assert (other.queued, other.counts.shed) == (1, 0)


def test_a_frame_late_for_none_in_hand_puts_one_there_for_good() -> None:
    playout = Playout()
    quiet(playout, CLEAN_TICKS // 4 + 2, 0.001)
    assert playout.in_hand == 0
    late = playout.tick // 4
    run(playout, 1)
    push(playout, late, frame(late, level=-4 * late))
    run(playout, 3)
    assert playout.counts.underruns == 1
    quiet(playout, 3 * CLEAN_TICKS // 4, 0.001)
    assert (playout.in_hand, playout.queued, playout.counts.underruns) == (1, 1, 1)


def test_delay_that_is_not_needed_is_given_back_in_quiet_pieces() -> None:
    playout = Playout(least=IN_HAND)
    steady(playout, 0, 0)
    run(playout, 4)
    push(playout, 1, frame(1, level=-4))  # a hiccup: it comes with the next one
    k = 2
    left = []
    for _ in range(2 * CLEAN_TICKS // 4 + 4):
        push(playout, k, frame(k, level=-4 * k))  # quiet
        k += 1
        run(playout, 3)
        left.append(playout.queued - 1)
        run(playout, 1)
    assert left[0] > 1
    assert left[-1] == 1
    assert playout.counts.shed == left[0] - left[-1]


def test_speech_is_not_shed_below_the_hard_bound_and_silence_is() -> None:
    loud, silent = Playout(), Playout()
    for k in range(4):
        push(loud, k, frame(k))
        push(silent, k, frame(k, level=-4 * k))
    run(loud, 2)
    run(silent, 2)
    assert loud.counts.shed == 0
    assert silent.counts.shed == 4 * 4 - MOST_QUEUED
    assert silent.queued == MOST_QUEUED - 1


def test_what_is_queued_is_bounded_whatever_comes() -> None:
    playout = Playout()
    for k in range(40):
        push(playout, k, frame(k))
        assert playout.queued <= HARD_BOUND
    heard = [piece for piece in run(playout, 30) if piece is not None]
    assert heard == list(range(40 * 4 - HARD_BOUND, 40 * 4))


def test_running_dry_after_finish_is_the_end_and_no_underrun() -> None:
    playout = Playout()
    steady(playout, 0, 0)
    playout.finish()
    assert run(playout, 3) == [3, None, None]
    assert playout.queued == 0
    assert playout.counts.underruns == 0


def largest_jump(pieces: list[bytes]) -> int:
    samples = np.frombuffer(b"".join(pieces), "<i2").astype(int)
    return int(np.abs(np.diff(samples)).max())


def test_the_edges_of_an_underrun_do_not_click() -> None:
    tone = to_pcm16(0.5 * np.sin(2 * np.pi * 200 * np.arange(2 * 1920) / 24000 + 1.0))
    playout = Playout()
    pieces = [pop(playout)]
    push(playout, 0, tone[:FRAME_BYTES])
    pieces += [pop(playout) for _ in range(8)]
    push(playout, 1, tone[FRAME_BYTES:])
    pieces += [pop(playout) for _ in range(8)]
    assert playout.counts.underruns == 2
    assert largest_jump(pieces) < 2 * largest_jump([tone])


def test_a_dropped_piece_does_not_click() -> None:
    hum = 150 * np.sin(2 * np.pi * 90 * np.arange(4 * 1920) / 24000) / 32768
    pcm = to_pcm16(hum)
    playout = Playout()
    for k in range(4):
        push(playout, k, pcm[k * FRAME_BYTES:(k + 1) * FRAME_BYTES])
    pieces = [pop(playout) for _ in range(9)]
    assert playout.counts.shed
    assert largest_jump(pieces) < 20


@given(st.lists(st.one_of(st.just(None), st.integers(0, 3)), max_size=120))
def test_pieces_are_heard_in_order_at_most_once_and_the_map_is_right(happenings: list[int | None]) -> None:
    """None: a tick; a number: the next frame comes, after so many that never do."""
    playout = Playout()
    k = 0
    heard: list[tuple[int, int]] = []  # tick, piece
    for happening in happenings:
        if happening is None:
            tick = playout.tick
            piece = pop(playout)
            assert len(piece) == CHUNK_BYTES
            if (number := told(piece)) is not None:
                heard.append((tick, number))
        else:
            k += happening
            assert push(playout, k, frame(k))
            k += 1
        assert playout.queued <= HARD_BOUND
    numbers = [number for _, number in heard]
    assert numbers == sorted(set(numbers))
    began = {}
    for tick, number in heard:
        began.setdefault(number // 4, tick * CHUNK)
    assert {item.k: item.sample for item in playout.take_heard()} == began
