"""A recording after its call: the same samples as FLAC, the same sound as Opus, and never lost on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
import numpy as np
import pytest
from call_fakes import FakeEvents

from calls.events import RecordingKept
from media.audio import CHUNK, SAMPLE_RATE, from_pcm16
from media.recorder import Header, RawRecording, Taped, raw_path
from media.recordings import Keeper, Storage, StorageError, keep, keep_orphans

SECONDS = 3


def tones() -> np.ndarray:
    """int16 [samples, 2]: other tones on each side, with a beginning that can be found again."""
    at = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    sides = [np.sin(2 * np.pi * hz * at * (1 + 0.2 * at)) * (at > begin) for hz, begin in ((300, 0.5), (440, 0.8))]
    return np.round(8000 * np.stack(sides, axis=1)).astype(np.int16)


def recorded(data_dir: Path, call: str = "call", sound: np.ndarray | None = None) -> RawRecording:
    sound = tones() if sound is None else sound
    raw = RawRecording.create(raw_path(data_dir, call), Header(call, 4))
    raw.write(Taped(tick, *(sound[at:at + CHUNK, side].tobytes() for side in (0, 1)))
              for tick, at in enumerate(range(0, len(sound), CHUNK)))
    return raw


def decoded(path: str) -> np.ndarray:
    """float32 [samples, 2] at SAMPLE_RATE."""
    with av.open(path) as file:
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=SAMPLE_RATE)
        parts = [part.to_ndarray().reshape(-1, 2) for frame in file.decode(audio=0)
                 for part in resampler.resample(frame)]
        parts += [part.to_ndarray().reshape(-1, 2) for part in resampler.resample(None)]
    return from_pcm16(np.concatenate(parts).tobytes()).reshape(-1, 2)


def test_flac_keeps_every_sample_of_both_sides(tmp_path: Path) -> None:
    raw = recorded(tmp_path)
    kept = keep(raw, Storage(str(tmp_path / "kept")), "flac", lost_s=0.5, paused_s=1.0)
    assert kept == RecordingKept(str(tmp_path / "kept" / "call.flac"), "flac", SECONDS,
                                 (tmp_path / "kept" / "call.flac").stat().st_size, 0.5, 1.0)
    assert np.array_equal(decoded(kept.url) * 32768, tones())
    assert oct(Path(kept.url).stat().st_mode & 0o777) == "0o600"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["call.flac"]


def test_opus_keeps_sound_and_time_in_a_tenth_of_the_room(tmp_path: Path) -> None:
    raw = recorded(tmp_path)
    kept = keep(raw, Storage(str(tmp_path)), "opus")
    assert kept is not None
    ours, theirs = from_pcm16(tones().tobytes()).reshape(-1, 2), decoded(kept.url)
    assert abs(len(theirs) - len(ours)) < 0.05 * SAMPLE_RATE
    length = min(len(ours), len(theirs))
    for side in (0, 1):
        lags = np.fft.irfft(np.fft.rfft(ours[:length, side], 2 * length).conj()
                            * np.fft.rfft(theirs[:length, side], 2 * length))
        assert int(np.argmax(lags)) in (0, 1, 2 * length - 1), "its samples are where they were"
        assert np.corrcoef(ours[:length, side], theirs[:length, side])[0, 1] > 0.98
    assert kept.bytes < 0.25 * tones().nbytes


def test_a_call_without_sound_leaves_nothing(tmp_path: Path) -> None:
    assert keep(RawRecording.create(raw_path(tmp_path, "call"), Header("call", 1)), Storage(str(tmp_path)), "flac") \
        is None
    assert not list((tmp_path / "calls").iterdir())


def test_what_cant_be_kept_stays_for_another_try(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    raw = recorded(tmp_path)
    with pytest.raises(StorageError, match="file"):
        keep(raw, Storage(str(tmp_path / "file")), "flac")
    again = RawRecording.take(raw_path(tmp_path, "call"))
    assert again is not None
    kept = keep(again, Storage(str(tmp_path / "kept")), "flac")
    assert kept is not None
    assert np.array_equal(decoded(kept.url) * 32768, tones())


def test_a_recording_that_cant_be_encoded_leaves_no_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(*_: object) -> None:
        (tmp_path / "calls" / "call.flac.part").write_bytes(b"half")
        raise av.error.InvalidDataError(1, "broken")

    monkeypatch.setattr("media.recordings._encode", breaks)
    with pytest.raises(StorageError, match="broken"):
        keep(recorded(tmp_path), Storage(str(tmp_path)), "flac")
    assert [path.name for path in (tmp_path / "calls").iterdir()] == ["call.raw"]
    raw = RawRecording.take(raw_path(tmp_path, "call"))
    assert raw is not None, "its lock is free, so that it is tried again"
    raw.close()


def test_any_storage_of_fsspec_will_do_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    kept = keep(recorded(tmp_path), Storage("memory://recordings/here"), "flac")
    assert kept is not None
    assert kept.url == "memory://recordings/here/call.flac"
    import fsspec

    assert fsspec.filesystem("memory").size("/recordings/here/call.flac") == kept.bytes
    with pytest.raises(StorageError, match="recordings can't be kept at nowhere://x"):
        Storage("nowhere://x").check()


async def test_a_keeper_tells_what_it_kept_in_the_calls_events(tmp_path: Path) -> None:
    events = FakeEvents()
    keeper = Keeper(Storage(str(tmp_path / "kept")), "flac", events)
    for call in ("one", "two"):
        keeper.keep(recorded(tmp_path, call))
    assert keeper.busy
    assert await keeper.drain(10) == 0
    assert [(each.call, each.fence, each.event.url) for each in events.sent] == [  # type: ignore[union-attr]
        (call, 4, str(tmp_path / "kept" / f"{call}.flac")) for call in ("one", "two")]


async def test_recordings_of_processes_that_are_gone_are_kept_and_running_ones_are_let_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    events, stop = FakeEvents(), asyncio.Event()
    recorded(tmp_path, "left").close()
    running = recorded(tmp_path, "running")
    raw_path(tmp_path, "broken").write_bytes(b"nothing")
    keeper = Keeper(Storage(str(tmp_path / "kept")), "flac", events)
    sweeping = asyncio.create_task(keep_orphans(tmp_path, keeper, stop, sweep_s=0.01))
    async with asyncio.timeout(10):
        while not events.sent:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        running.close()
        while len(events.sent) < 2:
            await asyncio.sleep(0.01)
    stop.set()
    await sweeping
    assert [each.call for each in events.sent] == ["left", "running"]
    complaints = [record.message for record in caplog.records if "broken.raw" in record.message]
    assert len(complaints) == 1, "it isn't told at each look"


async def test_a_recording_that_cant_be_kept_now_is_tried_again_and_told_of_once(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events, stop = FakeEvents(), asyncio.Event()
    recorded(tmp_path, "left").close()
    (tmp_path / "kept").write_text("in the way")
    keeper = Keeper(Storage(str(tmp_path / "kept")), "flac", events)
    sweeping = asyncio.create_task(keep_orphans(tmp_path, keeper, stop, sweep_s=0.01, try_again_s=0.02))
    await asyncio.sleep(0.5)
    assert not events.sent
    (tmp_path / "kept").unlink()
    async with asyncio.timeout(10):
        while not events.sent:
            await asyncio.sleep(0.01)
    stop.set()
    await sweeping
    assert len(caplog.records) == 2, [record.message for record in caplog.records]
