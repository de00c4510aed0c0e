from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from media.audio import CHUNK_BYTES, FRAME_BYTES, SILENT_CHUNK
from media.crossing import FRAMES_WAITING, Crossing
from media.framing import TRANSIT_S

LOUD_CHUNK = b"\x00\x10" * (CHUNK_BYTES // 2)


def crossing(notify: Callable[[], None] = lambda: None, *, boundary_at: float = TRANSIT_S) -> Crossing:
    """One whose clock stands at 0 by `monotonic` and at 1000 by `wall`."""
    loop = asyncio.get_running_loop()
    return Crossing(loop, notify, boundary_at, monotonic=lambda: 0.0, wall=lambda: 1000.0)


def tick(call: Crossing, chunk: bytes | None = LOUD_CHUNK) -> bytes:
    piece = call.wanted()
    call.received(chunk)
    return piece


async def test_the_clock_begins_with_the_first_piece_wanted_and_not_before() -> None:
    call = crossing()
    call.received(LOUD_CHUNK)  # the tick in which it was connected
    assert call.began is None
    for _ in range(4):
        tick(call)
    assert [frame.k for frame in call.take()] == [0]
    assert call.ticks == 3 + 4


async def test_leading_silence_moves_the_beginning_of_the_call_before_the_first_tick() -> None:
    call = crossing(boundary_at=TRANSIT_S + 0.021)
    tick(call)
    assert call.began is not None
    assert (call.began.leading, call.began.unix_s) == (2, pytest.approx(1000 - 0.040))
    tick(call)
    [frame] = call.take()
    assert frame.pcm == SILENT_CHUNK * 2 + LOUD_CHUNK * 2


async def test_the_loop_is_told_from_another_thread_and_gets_what_was_said() -> None:
    told = asyncio.Event()
    call = crossing(told.set)
    thread = threading.Thread(target=lambda: [tick(call) for _ in range(4)])
    thread.start()
    async with asyncio.timeout(5):
        await told.wait()
    thread.join()
    assert call.take()[0].pcm == SILENT_CHUNK * 3 + LOUD_CHUNK


async def test_a_loop_that_does_not_come_loses_the_oldest_frames_and_each_is_counted() -> None:
    call = crossing()
    for _ in range(1 + 4 * (FRAMES_WAITING + 1)):
        tick(call)
    assert [frame.k for frame in call.take()] == [2, 3, 4]
    assert call.dropped == 2
    assert call.frames_made == 5


async def test_the_agent_is_heard_and_after_close_nothing_is() -> None:
    call = crossing()
    tick(call)
    assert call.push(0, b"\x00\x10" * (FRAME_BYTES // 2))
    pieces = [tick(call) for _ in range(4)]
    assert pieces[:2] == [SILENT_CHUNK] * 2, "a call begins with two pieces in hand"
    assert any(pieces[2])
    assert not call.drained
    call.close()
    made = call.frames_made
    assert made > 0
    assert tick(call) == SILENT_CHUNK
    for _ in range(8):
        tick(call)
    assert call.frames_made == made, "a closed call's clock stands still"


async def test_a_fault_in_a_callback_is_logged_once_and_the_caller_hears_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    call = Crossing(asyncio.get_running_loop(), lambda: None, 0.0, monotonic=broken)
    assert [call.wanted(), call.wanted()] == [SILENT_CHUNK, SILENT_CHUNK]
    assert len(caplog.records) == 1
