"""One session with all its surroundings, for tests of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from call_fakes import RECEIVED, FakeEvents, FakeLeases, FakeWorker, until

from calls import wire
from calls.rules import Rule
from media.audio import CHUNK
from media.crossing import Crossing
from media.recorder import RawRecording
from media.session import Session, SessionSettings


class Transport:
    """A phone line whose clock the test turns by hand: says numbered chunks, keeps what it hears."""

    def __init__(self, crossing: Crossing) -> None:
        self.crossing = crossing
        self.ticks = 0
        self.heard: list[bytes] = []

    def chunk(self, number: int) -> bytes:
        return np.full(CHUNK, 1000 + number, "<i2").tobytes()

    def say(self, level: int) -> None:
        """A tick with this sample throughout."""
        self.heard.append(self.crossing.wanted())
        self.crossing.received(np.full(CHUNK, level, "<i2").tobytes())
        self.ticks += 1

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.heard.append(self.crossing.wanted())
            self.crossing.received(self.chunk(self.ticks))
            self.ticks += 1


class Kept:
    """Takes what was recorded, as media.recordings.Keeper does."""

    def __init__(self) -> None:
        self.raw: list[RawRecording] = []
        self.paused_s = 0.0

    def keep(self, raw: RawRecording, lost_s: float, paused_s: float) -> None:
        assert lost_s == 0
        self.raw.append(raw)
        self.paused_s = paused_s

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """What was heard and what was said: int16 [pieces, CHUNK] each."""
        [raw] = self.raw
        heard, said = np.concatenate(list(raw.blocks())).T.reshape(2, -1, CHUNK)
        return heard, said


class Bench:
    """One session with all its surroundings."""

    def __init__(self, worker: FakeWorker, tmp_path: Path) -> None:
        self.worker = worker
        self.leases = FakeLeases(worker.url)
        self.events = FakeEvents()
        self.data_dir = tmp_path
        self.lease_s = 60.0
        self.move_within_s = 15.0
        self.recordings: Kept | None = None
        self.rules: tuple[Rule, ...] = ()
        self.persona = wire.Persona()

    def session(self) -> Session:
        settings = SessionSettings(self.lease_s, self.data_dir, records=self.recordings is not None,
                                   move_within_s=self.move_within_s, rules=self.rules, persona=self.persona)
        return Session("call-1", RECEIVED, "fake", leases=self.leases, events=self.events, settings=settings,
                       recordings=self.recordings)

    async def talking(self) -> tuple[Session, Transport]:
        session = self.session()
        assert await session.prepare()
        return session, Transport(session.answered("PCMU"))

    async def frames(self, transport: Transport, count: int) -> None:
        """As many frames of the caller's, each answered by the worker before the next."""
        for _ in range(count):
            sent = len(self.worker.heard)
            while transport.crossing.frames_made <= sent:
                transport.tick()
            await until(lambda sent=sent: len(self.worker.said) > sent)  # type: ignore[misc]
            await until(lambda: not transport.crossing.drained)

    def kinds(self) -> list[str]:
        return [envelope.event.kind for envelope in self.events.sent]
