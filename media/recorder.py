"""A call's recording: what the caller really heard on the left, what they really said on the right.

Both lie on the call's clock: frame k of the caller begins at sample 1920 k, and so does what was heard then. While the
call lasts each 20 ms goes to its place in a raw file, which outlives the process; afterwards it becomes FLAC or Opus
(media/recordings.py).

    clock thread   Crossing ──Taped──▶ loop   Recorder.take ──▶ thread   RawRecording.write
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from media.audio import BYTES_PER_SAMPLE, CHUNK, CHUNK_BYTES, CHUNK_S, SAMPLE_RATE, SILENT_CHUNK

log = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".raw"
CHANNELS = 2
HEADER_BYTES = 1024
WRITE_EVERY = round(1.0 / CHUNK_S)  # pieces that are written together
BUFFERED = round(20.0 / CHUNK_S)  # pieces, while the disk doesn't take any; the next drops the oldest, counted
LONGEST_S = 24 * 3600  # of a recording, lest a wrong place makes a file without end
_PLACE = CHANNELS * CHUNK_BYTES  # bytes of a piece in the file


class RecordingError(ValueError):
    """One line that names the file and what is wrong with it."""


class Taped(NamedTuple):
    """20 ms of both sides."""

    tick: int  # of the call's clock: its samples begin at CHUNK * tick
    heard: bytes
    said: bytes
    by_operator: bool = False  # what was heard: an operator talked in the agent's place


@dataclass(frozen=True)
class Header:
    """What a raw recording tells whoever finds it."""

    call: str
    fence: int  # of the events that the call had
    format: int = FORMAT


class RawRecording:
    """The file of a running call. Whoever has it open holds its lock: it is nobody's where the lock is free."""

    def __init__(self, path: Path, header: Header, handle: int) -> None:
        self.path, self.header = path, header
        self._handle = handle

    @classmethod
    def create(cls, path: Path, header: Header) -> RawRecording:
        """Raises OSError."""
        line = json.dumps(asdict(header)).encode()
        if len(line) >= HEADER_BYTES:
            raise RecordingError(f"{path}: its header is too long")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(".new")  # until it is locked, so that nobody takes it before
        handle = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.pwrite(handle, line.ljust(HEADER_BYTES - 1) + b"\n", 0) < HEADER_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            os.close(handle)
            raise
        return cls(path, header, handle)

    @classmethod
    def take(cls, path: Path) -> RawRecording | None:
        """The recording of a process that is gone; None where somebody has it. Raises RecordingError for another file,
        OSError where it can't be read."""
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists():  # who had it has just kept it
                raise BlockingIOError
            fields = json.loads(os.pread(handle, HEADER_BYTES, 0))
            header = Header(str(fields["call"]), int(fields["fence"]), int(fields["format"]))
        except BlockingIOError:
            os.close(handle)
            return None
        except (ValueError, KeyError, TypeError):
            os.close(handle)
            raise RecordingError(f"{path}: doesn't begin with a recording's header") from None
        if header.format != FORMAT:
            os.close(handle)
            raise RecordingError(f"{path}: is of format {header.format}, not {FORMAT}")
        return cls(path, header, handle)

    @property
    def samples(self) -> int:
        """Of each channel, up to the last whole piece."""
        return max(0, os.fstat(self._handle).st_size - HEADER_BYTES) // _PLACE * CHUNK

    def write(self, pieces: Iterable[Taped]) -> None:
        """Each at its place; what lies between is silence. Raises OSError."""
        run: list[bytes] = []
        begin = following = -1
        for piece in pieces:
            if not 0 <= piece.tick < LONGEST_S / CHUNK_S:
                continue
            if run and piece.tick != following:
                self._put(begin, run)
                run = []
            if not run:
                begin = piece.tick
            run.append(_interleaved(piece.heard, piece.said))
            following = piece.tick + 1
        if run:
            self._put(begin, run)

    def blocks(self, samples: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
        """All of it, in order: int16 [up to `samples`, 2]. Raises OSError."""
        at, end = HEADER_BYTES, HEADER_BYTES + self.samples * CHANNELS * BYTES_PER_SAMPLE
        while at < end:
            data = os.pread(self._handle, min(samples * CHANNELS * BYTES_PER_SAMPLE, end - at), at)
            if not data:
                return
            at += len(data)
            yield np.frombuffer(data, "<i2").reshape(-1, CHANNELS)

    def close(self) -> None:
        """Let go of it: it stays where it is, for whoever takes it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """It is kept elsewhere."""
        self.path.unlink(missing_ok=True)  # before the lock is free, so that nobody takes it
        self.close()

    def _put(self, tick: int, run: list[bytes]) -> None:
        data, at = b"".join(run), HEADER_BYTES + tick * _PLACE
        while data:
            written = os.pwrite(self._handle, data, at)
            data, at = data[written:], at + written


def raw_path(data_dir: Path, call: str) -> Path:
    return data_dir / "calls" / (call + SUFFIX)


class Recorder:
    """One running call's; all methods are called on the loop, which never waits for the disk."""

    def __init__(self, path: Path, call: str, fence: int) -> None:
        """Raises OSError, also of the disk."""
        self.paused_s = self.lost_s = 0.0
        self._raw = RawRecording.create(path, Header(call, fence))
        self._call = call
        self._paused = False
        self._pieces: deque[Taped] = deque(maxlen=BUFFERED)
        self._writing: asyncio.Task[None] | None = None
        self._failing = False

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Silence on both sides, from now on."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def take(self, pieces: Iterable[Taped]) -> None:
        for piece in pieces:
            if self._paused:
                self.paused_s += CHUNK_S
                piece = Taped(piece.tick, SILENT_CHUNK, SILENT_CHUNK)
            if len(self._pieces) == BUFFERED:
                self.lost_s += CHUNK_S
            self._pieces.append(piece)
        if len(self._pieces) >= WRITE_EVERY and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write())

    async def finish(self) -> RawRecording:
        """All is written, as far as the disk takes it; the caller has the recording now."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write()
        self.lost_s += len(self._pieces) * CHUNK_S
        return self._raw

    async def _write(self) -> None:
        pieces = list(self._pieces)
        self._pieces.clear()
        try:
            await asyncio.to_thread(self._raw.write, pieces)
        except OSError as error:
            room = BUFFERED - len(self._pieces)
            self.lost_s += max(0, len(pieces) - room) * CHUNK_S
            self._pieces.extendleft(reversed(pieces[max(0, len(pieces) - room):]))
            if not self._failing:
                log.error("call %s: its recording can't be written: %s", self._call, error)
            self._failing = True
        else:
            self._failing = False


def _interleaved(heard: bytes, said: bytes) -> bytes:
    return np.stack([np.frombuffer(heard, "<i2"), np.frombuffer(said, "<i2")], axis=1).tobytes()
