from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.audio import CHUNK_BYTES, CHUNK_S, FRAME_BYTES, FRAME_S, SILENT_CHUNK
from media.framing import TRANSIT_S, Frame, Framer, leading_chunks


def chunk(number: int) -> bytes:
    return bytes([number % 251 + 1]) * CHUNK_BYTES


def test_four_chunks_make_a_frame_and_frames_are_numbered_from_zero() -> None:
    framer = Framer()
    frames = [frame for number in range(12) if (frame := framer.push(chunk(number)))]
    assert [frame.k for frame in frames] == [0, 1, 2]
    assert b"".join(frame.pcm for frame in frames) == b"".join(map(chunk, range(12)))
    assert framer.frames == 3


def test_a_caller_from_whom_nothing_comes_still_makes_a_frame_every_80_ms() -> None:
    framer = Framer()
    frames = [frame for _ in range(8) if (frame := framer.push(None))]
    assert frames == [Frame(0, bytes(FRAME_BYTES), 4), Frame(1, bytes(FRAME_BYTES), 4)]


def test_a_missing_chunk_is_silence_in_its_place_and_shifts_nothing() -> None:
    framer = Framer()
    pushed = [framer.push(part) for part in (chunk(1), None, b"short", chunk(4))]
    assert pushed[3] == Frame(0, chunk(1) + SILENT_CHUNK + SILENT_CHUNK + chunk(4), 2)


def test_frame_0_begins_with_the_leading_silence() -> None:
    framer = Framer(leading=3)
    assert framer.push(chunk(1)) == Frame(0, SILENT_CHUNK * 3 + chunk(1), 3)
    assert [bool(framer.push(chunk(n))) for n in range(4)] == [False, False, False, True]


def test_more_leading_silence_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 3"):
        Framer(leading=4)


@given(st.floats(-10, 10))
def test_frames_are_complete_within_one_chunk_before_the_boundary_and_in_time_to_travel(boundary_s: float) -> None:
    complete_s = (3 - leading_chunks(boundary_s)) * CHUNK_S
    spare_s = (boundary_s - complete_s) % FRAME_S
    assert TRANSIT_S - 1e-9 <= spare_s <= TRANSIT_S + CHUNK_S + 1e-9
