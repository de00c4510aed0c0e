"""What is kept of a call's talk while it lasts: words as utterances, steps as a token log, how long each frame took."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from calls import wire
from calls.events import Measure, UtteranceSpoken
from calls.monologues import LastWritten
from media.audio import CHUNK_S
from media.crossing import Crossing
from media.latency import Latency
from media.token_log import TokenLog, token_log_path
from media.turns import counted
from media.utterances import Utterances

log = logging.getLogger(__name__)


class Talk:
    """One call's, from the moment its worker is ready. Methods return the utterances that began or grew."""

    def __init__(self, ready: wire.Ready, kept_steps: int, latency: Latency) -> None:
        self.token_log = TokenLog(ready.layout, kept_steps)
        self._utterances = Utterances(ready.largest_delay)
        self.written = LastWritten() if ready.generated_codebooks else None  # else the model writes nothing
        self._latency, self._concealed = latency, 0

    def came(self, message: object, now: float) -> list[UtteranceSpoken]:
        """What the worker says, at this moment of the loop's clock."""
        match message:
            case wire.Audio(k, _):
                self._latency.back(k, now)
            case wire.Step():
                self.token_log.add(message)
                if self.written is not None:
                    self.written.step(message)
                self._latency.stepped(message.k, message.us_waited / 1e6, message.us_in_step / 1e6)
            case wire.Outcome(outcome=wire.REPRIMED, k=k):
                self.token_log.begin_anew(k)
            case wire.Text():
                if self.written is not None:
                    self.written.text(message)
                return self._utterances.take(message)
        return []

    def conceal(self, chunks: int) -> None:
        """So many of the caller's chunks didn't come in time."""
        self._concealed += chunks

    def advance(self, crossing: Crossing) -> list[UtteranceSpoken]:
        """What the caller has heard by now."""
        heard = crossing.take_heard()
        if heard:
            self.token_log.heard(heard[-1].k)
        for frame in heard:
            self._latency.heard(frame.k, frame.at)
        return self._utterances.advance(heard, crossing.ticks * CHUNK_S)

    def finish(self) -> list[UtteranceSpoken]:
        return self._utterances.finish()

    def measures(self) -> tuple[Measure, ...]:
        return *self._latency.measures(), counted("concealed", self._concealed)

    async def write(self, data_dir: Path, call: str, model: str, answered_at: str) -> None:
        """The token log, where any step was heard."""
        if not len(self.token_log):
            return
        try:
            await asyncio.to_thread(self.token_log.write, token_log_path(data_dir, call), call, model, answered_at)
        except OSError as error:
            log.error("call %s: its token log can't be written: %s", call, error)
