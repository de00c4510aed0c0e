"""What becomes of a call's recording afterwards: FLAC or Opus, in a folder or in the cloud, told by one event.

The bridge keeps its calls' recordings when they end. What a process that died leaves behind is a raw file whose lock is
free: `keep_orphans`, in the persister, finds and keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

import av
import fsspec
import numpy as np

from calls.events import Envelope, Event, RecordingKept
from media.audio import SAMPLE_RATE
from media.recorder import CHANNELS, SUFFIX, RawRecording, RecordingError

log = logging.getLogger(__name__)

Codec = Literal["flac", "opus"]
SWEEP_S = 5.0  # between two looks for what others left behind
TRY_AGAIN_S = 20.0  # for a recording that can't be kept now
AT_ONCE = 1  # recordings that a process encodes at the same time: calls go first
_CONTAINERS: dict[Codec, tuple[str, str]] = {"flac": ("flac", "flac"), "opus": ("ogg", "libopus")}
_OPUS_BITS = 64_000  # a second, of both channels


class Emits(Protocol):
    """What is needed of calls.live.EventWriter."""

    def emit(self, call: str, fence: int, event: Event, at: datetime | None = None) -> Envelope: ...


class StorageError(Exception):
    """One line that says what can't be kept, and where."""


@dataclass(frozen=True)
class Storage:
    """Where recordings are kept: a folder, or any URL that fsspec knows (`s3://bucket/prefix`)."""

    url: str

    @property
    def folder(self) -> Path | None:
        """Where it is one of this machine."""
        parts = urlsplit(self.url)
        return Path(parts.path if parts.scheme == "file" else self.url) if parts.scheme in ("", "file") else None

    def check(self) -> None:
        """Raises StorageError where nothing could ever be kept."""
        try:
            fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"recordings can't be kept at {self.url}: {error}") from None

    def put(self, path: Path) -> str:
        """Move a file of this machine there; returns its URL. Raises StorageError; then the file is where it was."""
        if (folder := self.folder) is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                target = folder / path.name
                if target.resolve() != path.resolve():
                    part = target.with_name(target.name + ".part")
                    shutil.copy(path, part)  # with its mode: nobody else may hear it
                    os.replace(part, target)
                    path.unlink()
                return str(target.resolve())
            except OSError as error:
                raise StorageError(f"{folder}: {error.strerror or error}") from None
        url = f"{self.url.rstrip('/')}/{path.name}"
        try:
            filesystem, target_path = fsspec.core.url_to_fs(url)
            filesystem.put_file(str(path), target_path)
            path.unlink()
        except Exception as error:  # each kind of storage has errors of its own; it is tried again
            raise StorageError(f"{url}: {type(error).__name__}: {error}") from error
        return url


async def silence(url: str, codec: Codec, spans: Sequence[tuple[float, float]]) -> int:
    """Makes these seconds of a kept recording silent on both sides; returns its bytes afterwards. Raises
    StorageError."""
    return await asyncio.to_thread(_silence, url, codec, spans)


def _silence(url: str, codec: Codec, spans: Sequence[tuple[float, float]]) -> int:
    _check_name(url)
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before"), Path(folder, f"after.{codec}")
            filesystem, path = fsspec.core.url_to_fs(url)
            filesystem.get_file(path, str(before))
            _encode(_silenced(_decoded(before), spans), after, codec)
            size = after.stat().st_size
            if urlsplit(url).scheme in ("", "file"):
                part = Path(path + ".part")
                shutil.copy(after, part)
                part.chmod(0o600)
                os.replace(part, path)
            else:
                filesystem.put_file(str(after), path)
        return size
    except Exception as error:  # each kind of storage has errors of its own; it is tried again
        raise StorageError(f"{url}: {type(error).__name__}: {error}") from error


def _decoded(path: Path) -> Iterator[np.ndarray]:
    """int16 [samples, 2] at SAMPLE_RATE."""
    with av.open(str(path)) as file:
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=SAMPLE_RATE)
        for frame in itertools.chain(file.decode(audio=0), (None,)):
            for part in resampler.resample(frame):
                yield part.to_ndarray().reshape(-1, CHANNELS)


def _silenced(blocks: Iterable[np.ndarray], spans: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    at = 0
    for block in blocks:
        for begin_s, end_s in spans:
            first, last = (min(max(round(seconds * SAMPLE_RATE) - at, 0), len(block)) for seconds in (begin_s, end_s))
            if first < last:
                block = block.copy()
                block[first:last] = 0
        at += len(block)
        yield block


async def remove(url: str) -> None:
    """A recording, by the URL or path that `Storage.put` returned; none there is well. Raises StorageError."""
    await asyncio.to_thread(_remove, url)


def _remove(url: str) -> None:
    _check_name(url)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.rm_file(path)
    except FileNotFoundError:
        return
    except Exception as error:  # each kind of storage has errors of its own; it is tried again
        raise StorageError(f"{url}: {type(error).__name__}: {error}") from error


def _check_name(url: str) -> None:
    if not url.endswith(tuple(f".{codec}" for codec in _CONTAINERS)):
        raise StorageError(f"{url}: no recording")


class KeptFile:
    """A recording as it is kept, to be read in parts; blocking work is done in threads."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    @classmethod
    async def opened(cls, url: str) -> KeptFile:
        """By the URL or path that `Storage.put` returned. Raises StorageError."""
        return await asyncio.to_thread(cls._open, url)

    @classmethod
    def _open(cls, url: str) -> KeptFile:
        _check_name(url)
        try:
            file = fsspec.open(url, "rb").open()
            return cls(file, file.seek(0, os.SEEK_END))
        except Exception as error:  # each kind of storage has errors of its own
            raise StorageError(f"{url}: {type(error).__name__}: {error}") from error

    async def read(self, start: int, size: int) -> bytes:
        """Raises StorageError."""
        try:
            return await asyncio.to_thread(self._read, start, size)
        except Exception as error:  # as above
            raise StorageError(f"{type(error).__name__}: {error}") from error

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def encode(raw: RawRecording, out: Path, codec: Codec) -> None:
    """Write the whole recording to `out`, whole or not at all. Raises OSError and av.error.FFmpegError."""
    part = out.with_name(out.name + ".part")
    try:
        _encode(raw.blocks(), part, codec)
        part.chmod(0o600)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _encode(blocks: Iterable[np.ndarray], out: Path, codec: Codec) -> None:
    """int16 [samples, 2] at SAMPLE_RATE."""
    container, name = _CONTAINERS[codec]
    with av.open(str(out), "w", format=container) as file:
        stream = file.add_stream(name, rate=SAMPLE_RATE, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        if codec == "opus":
            stream.bit_rate = _OPUS_BITS
        at = 0
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block).reshape(1, -1), format="s16",
                                               layout="stereo")
            frame.sample_rate, frame.pts = SAMPLE_RATE, at
            at += len(block)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def keep(raw: RawRecording, storage: Storage, codec: Codec, *, lost_s: float = 0.0, paused_s: float = 0.0,
         ) -> RecordingKept | None:
    """Encode a recording that has ended and put it where recordings are kept; the raw file goes. None where nothing was
    recorded. Raises StorageError; then the raw file stays, and its lock is free."""
    samples = raw.samples
    if not samples:
        raw.remove()
        return None
    out = raw.path.with_suffix(f".{codec}")
    try:
        encode(raw, out, codec)
        size = out.stat().st_size
        url = storage.put(out)
    except (OSError, av.error.FFmpegError) as error:
        raw.close()
        raise StorageError(f"{out}: {error}") from error
    except StorageError:
        raw.close()
        raise
    raw.remove()
    return RecordingKept(url, codec, samples / SAMPLE_RATE, size, round(lost_s, 2), round(paused_s, 2))


class Keeper:
    """Keeps the recordings of a process's calls, one after another, beside the calls that go on."""

    def __init__(self, storage: Storage, codec: Codec, events: Emits) -> None:
        self.storage, self.codec = storage, codec
        self._events = events
        self._one = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, raw: RawRecording, lost_s: float = 0.0, paused_s: float = 0.0, *, again: bool = False) -> None:
        """Soon; the raw file is the keeper's now. Where that fails it is told, but for one that is tried `again`."""
        task = asyncio.create_task(self._keep(raw, lost_s, paused_s, again))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    async def drain(self, timeout_s: float) -> int:
        """Wait for what isn't kept yet; returns how many are left, which somebody else will find."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        return len(self._tasks)

    async def _keep(self, raw: RawRecording, lost_s: float, paused_s: float, again: bool) -> None:
        call, fence = raw.header.call, raw.header.fence
        async with self._one:
            try:
                kept = await asyncio.to_thread(keep, raw, self.storage, self.codec, lost_s=lost_s, paused_s=paused_s)
            except StorageError as error:
                if not again:
                    log.error("call %s: its recording isn't kept yet: %s", call, error)
                return
        if kept is not None:
            self._events.emit(call, fence, kept)


async def keep_orphans(data_dir: Path, keeper: Keeper, stop: asyncio.Event, *, sweep_s: float = SWEEP_S,
                       try_again_s: float = TRY_AGAIN_S) -> None:
    """Until `stop`: keep the recordings of processes that are gone."""
    loop = asyncio.get_running_loop()
    not_before: dict[Path, float] = {}
    while not stop.is_set():
        for path in await asyncio.to_thread(_raw_files, data_dir):
            if stop.is_set() or not_before.get(path, 0.0) > loop.time():
                continue
            try:
                raw = RawRecording.take(path)
            except (RecordingError, OSError) as error:
                log.error("a recording that somebody left can't be kept: %s", error)
                raw = None
                not_before[path] = loop.time() + try_again_s
            if raw is not None:
                again = path in not_before
                if not again:
                    log.warning("call %s: keeping the recording that its process left", raw.header.call)
                not_before[path] = loop.time() + try_again_s
                keeper.keep(raw, again=again)
        not_before = {path: at for path, at in not_before.items() if path.exists()}
        await _unless(stop, sweep_s)


def _raw_files(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "calls").glob("*" + SUFFIX))


async def _unless(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()

