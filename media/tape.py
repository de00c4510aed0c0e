"""Both sides' sound of one call, as it is heard and said: who speaks when, and the recording."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from media.audio import levels
from media.recorder import RawRecording, Recorder, Taped, raw_path
from media.turns import Turns

log = logging.getLogger(__name__)


class Keeps(Protocol):
    """What a call needs of media.recordings.Keeper."""

    def keep(self, raw: RawRecording, lost_s: float, paused_s: float) -> None: ...


class Tape:
    """Takes the sound piece by piece. `recordings` takes the recording at the end; None: the call isn't recorded."""

    def __init__(self, recordings: Keeps | None) -> None:
        self.turns = Turns()
        self._recordings = recordings
        self._recorder: Recorder | None = None

    def record(self, data_dir: Path, call: str, fence: int) -> None:
        """The call is answered: record it from here on. A disk that fails costs the recording, not the call."""
        if self._recordings is None:
            return
        try:
            self._recorder = Recorder(raw_path(data_dir, call), call, fence)
        except OSError as error:
            log.error("call %s isn't recorded: %s", call, error)

    def take(self, pieces: Sequence[Taped]) -> None:
        heard = levels(b"".join(piece.heard for piece in pieces))
        said = levels(b"".join(piece.said for piece in pieces))
        for piece, heard_rms, said_rms in zip(pieces, heard, said, strict=True):
            self.turns.hear(piece.tick, heard_rms, said_rms, by_operator=piece.by_operator)
        if self._recorder is not None:
            self._recorder.take(pieces)

    def pause(self) -> bool:
        """Both sides are silent in the recording, until `resume`; False where there is none."""
        if self._recorder is not None:
            self._recorder.pause()
        return self._recorder is not None

    def resume(self) -> bool:
        if self._recorder is not None:
            self._recorder.resume()
        return self._recorder is not None

    async def keep(self) -> None:
        """The call is over."""
        if self._recorder is not None and self._recordings is not None:
            raw = await self._recorder.finish()
            self._recordings.keep(raw, self._recorder.lost_s, self._recorder.paused_s)
