"""A recording while its call runs: each 20 ms at its place, on a disk that may fail, in a process that may die."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from small_disk import no_file_grows_past

from media import recorder as recorder_module
from media.audio import CHUNK, SILENT_CHUNK
from media.recorder import (
    BUFFERED,
    HEADER_BYTES,
    WRITE_EVERY,
    Header,
    RawRecording,
    Recorder,
    RecordingError,
    Taped,
    raw_path,
)


def piece(tick: int) -> Taped:
    return Taped(tick, np.full(CHUNK, 1 + tick, "<i2").tobytes(), np.full(CHUNK, -1 - tick, "<i2").tobytes())


def both(raw: RawRecording) -> np.ndarray:
    """[samples, 2]"""
    return np.concatenate([np.zeros((0, 2), np.int16), *raw.blocks()])


def told(raw: RawRecording) -> list[int]:
    """What tick each 20 ms of it came from, -1 for silence; both sides must say the same."""
    sound = both(raw).reshape(-1, CHUNK, 2)
    assert (sound == sound[:, :1]).all()
    assert (sound[:, 0, 0] == -sound[:, 0, 1]).all()
    return [int(value) - 1 for value in sound[:, 0, 0]]


def test_each_piece_lies_at_its_tick_and_gaps_are_silent(tmp_path: Path) -> None:
    raw = RawRecording.create(tmp_path / "call.raw", Header("call", 3))
    raw.write([piece(2), piece(3), piece(6)])
    raw.write([piece(0), piece(5)])
    assert told(raw) == [0, -1, 2, 3, -1, 5, 6]
    assert raw.samples == 7 * CHUNK
    raw.close()


@pytest.mark.parametrize("size", [0, HEADER_BYTES // 2])
def test_where_there_is_no_room_for_its_header_nothing_is_left(tmp_path: Path, size: int) -> None:
    with no_file_grows_past(size), pytest.raises(OSError, match="File too large|No space left"):
        RawRecording.create(tmp_path / "call.raw", Header("call", 3))
    assert not list(tmp_path.iterdir())


def test_a_place_without_bound_is_left_out(tmp_path: Path) -> None:
    raw = RawRecording.create(tmp_path / "call.raw", Header("call", 3))
    raw.write([piece(1), Taped(10**9, SILENT_CHUNK, SILENT_CHUNK), Taped(-1, SILENT_CHUNK, SILENT_CHUNK)])
    assert told(raw) == [-1, 1]
    raw.close()


def test_whoever_dies_leaves_a_recording_that_another_may_take_but_only_one(tmp_path: Path) -> None:
    path = tmp_path / "calls" / "call.raw"
    child = os.fork()
    if not child:
        raw = RawRecording.create(path, Header("call", 7))
        raw.write([piece(0), piece(1)])
        os._exit(9)
    os.waitpid(child, 0)
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    raw = RawRecording.take(path)
    assert raw is not None
    assert raw.header == Header("call", 7)
    assert told(raw) == [0, 1]
    assert RawRecording.take(path) is None
    raw.remove()
    assert not path.exists()


def test_half_a_piece_at_the_end_is_none(tmp_path: Path) -> None:
    raw = RawRecording.create(tmp_path / "call.raw", Header("call", 1))
    raw.write([piece(0), piece(1)])
    with raw.path.open("r+b") as file:
        file.truncate(HEADER_BYTES + 3 * CHUNK * 4 // 2)
    assert told(raw) == [0]
    raw.close()


@pytest.mark.parametrize(("content", "complaint"), [
    (b"RIFF....", "doesn't begin with a recording's header"),
    (b'{"call": "x"}', "doesn't begin with a recording's header"),
    (b'{"call": "x", "fence": 1, "format": 9}', "is of format 9, not 1"),
])
def test_another_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "other.raw"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=rf"other\.raw: {complaint}"):
        RawRecording.take(path)


async def test_what_is_taken_is_written_while_the_call_goes_on(tmp_path: Path) -> None:
    recorder = Recorder(raw_path(tmp_path, "call"), "call", 1)
    recorder.take(piece(tick) for tick in range(WRITE_EVERY))
    async with asyncio.timeout(5):
        while raw_path(tmp_path, "call").stat().st_size == HEADER_BYTES:
            await asyncio.sleep(0.01)
    recorder.take([piece(WRITE_EVERY)])
    raw = await recorder.finish()
    assert told(raw) == list(range(WRITE_EVERY + 1))
    assert (recorder.lost_s, recorder.paused_s) == (0, 0)
    raw.close()


async def test_a_pause_is_silent_and_moves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(raw_path(tmp_path, "call"), "call", 1)
    recorder.take(piece(tick) for tick in range(3))
    recorder.pause()
    recorder.take(piece(tick) for tick in range(3, 8))
    recorder.resume()
    recorder.take([piece(8)])
    raw = await recorder.finish()
    assert told(raw) == [0, 1, 2, -1, -1, -1, -1, -1, 8]
    assert recorder.paused_s == pytest.approx(0.1)
    raw.close()


async def test_a_disk_that_takes_nothing_costs_the_oldest_sound_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(raw_path(tmp_path, "call"), "call", 1)
    full = True

    def pwrite(handle: int, data: bytes, at: int) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return written(handle, data, at)

    written = os.pwrite
    monkeypatch.setattr(recorder_module.os, "pwrite", pwrite)
    for first in range(0, BUFFERED + 100, 50):
        recorder.take(piece(tick) for tick in range(first, first + 50))
        await asyncio.sleep(0.01)
    full = False
    raw = await recorder.finish()
    lost = round(recorder.lost_s / 0.02)
    assert 0 < lost <= 150
    assert told(raw) == [-1] * lost + list(range(lost, BUFFERED + 100))
    assert [record.message for record in caplog.records] == [
        "call call: its recording can't be written: [Errno 28] No space left on device"]
    raw.close()
