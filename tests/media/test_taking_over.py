"""An operator on a call, over `/tap`: what they hear, what the caller hears, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from call_fakes import FakeWorker, until
from session_bench import Bench, Kept, Transport
from websockets.asyncio.client import connect

from calls import taps, wire
from calls.controls import Control, Result
from calls.events import ControlTaken
from calls.rules import Rule
from calls.taps import Grant, Talks
from media.audio import CHUNK, CHUNKS_PER_FRAME, FRAME_BYTES
from media.session import Session
from media.tap_link import HeardFrame, TapLink, TapLost
from media.tap_server import TapServer
from media.taps import IN_HAND

SECRET = b"s" * 32
VOICE = 5000  # every sample of what the operator says


class Operator:
    """Somebody at a `/tap`."""

    def __init__(self, link: TapLink, id: str) -> None:
        self.link, self.id = link, id
        self.frames: dict[int, HeardFrame] = {}
        self.talks: list[bool] = []
        self.ended = asyncio.create_task(self._listen())

    async def _listen(self) -> str:
        try:
            async for message in self.link.messages():
                match message:
                    case HeardFrame():
                        self.frames[message.k] = message
                    case Talks(on):
                        self.talks.append(on)
        except TapLost as lost:
            return lost.code
        return "over"


class Line:
    """A call that is carried, and its door."""

    def __init__(self, bench: Bench, session: Session, transport: Transport, server: TapServer) -> None:
        self.bench, self.session, self.transport, self.server = bench, session, transport, server
        self.operators: list[Operator] = []
        self.results: list[Result] = []

    async def operator(self, by: str = "ann", id: str | None = None) -> Operator:
        grant = Grant(id or taps.new_id("p"), self.session.call, by)
        link = await TapLink.open(self.server.url, taps.sign(grant, SECRET, time.time()))
        self.operators.append(Operator(link, grant.id))
        return self.operators[-1]

    async def gives(self, action: str, by: str = "ann", **what: str) -> Result:
        control = Control(self.session.call, action, by=by, **what)  # type: ignore[arg-type]
        await self.session.control(control, self.results.append)
        await until(lambda: any(result.id == control.id for result in self.results))
        return next(result for result in self.results if result.id == control.id)

    async def frames(self, count: int) -> None:
        await self.bench.frames(self.transport, count)

    async def says(self, operator: Operator, count: int) -> None:
        """So many frames, in each of which the operator says a piece for every tick."""
        for _ in range(count):
            for _ in range(CHUNKS_PER_FRAME):
                operator.link.say(np.full(CHUNK, VOICE, "<i2").tobytes())
            await asyncio.sleep(0.005)  # over the socket
            await self.frames(1)

    def spans(self, action: str) -> list[tuple[str, str, str]]:
        newest = {event.id: event for event in self.bench.events.of(ControlTaken) if isinstance(event, ControlTaken)}
        return [(event.by, event.outcome, event.why) for event in newest.values() if event.action == action]


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with FakeWorker() as worker:
        bench = Bench(worker, tmp_path)
        bench.recordings = Kept()
        async with _talking(bench) as line:
            yield line


@contextlib.asynccontextmanager
async def _talking(bench: Bench) -> AsyncIterator[Line]:
    session, transport = await bench.talking()
    server = TapServer(SECRET, {session.call: session.taps}.get)
    await server.start("127.0.0.1")
    line = Line(bench, session, transport, server)
    try:
        await line.frames(2)
        yield line
    finally:
        await session.close()
        for operator in line.operators:
            await operator.link.close()
            await operator.ended
        await server.close()


def _level(pcm: bytes) -> float:
    return float(np.abs(np.frombuffer(pcm, "<i2").astype(float)).mean())


async def test_an_operator_hears_both_sides_of_the_call(line: Line) -> None:
    operator = await line.operator()
    await line.frames(6)
    await until(lambda: len(operator.frames) >= 5)
    k = sorted(operator.frames)[2]
    began = line.transport.crossing.began
    assert began is not None
    first = CHUNKS_PER_FRAME * k - began.leading
    said = b"".join(map(line.transport.chunk, range(first, first + CHUNKS_PER_FRAME)))
    assert operator.frames[k].said == said
    assert operator.frames[k].heard == b"".join(line.transport.heard[first:first + CHUNKS_PER_FRAME])
    assert len(operator.frames[k].heard) == FRAME_BYTES


async def test_who_takes_over_is_heard_in_the_agents_place_and_recorded_there(line: Line) -> None:
    operator = await line.operator()
    taken = await line.gives("take_over", tap=operator.id)
    assert taken.outcome == "talking"
    began = len(line.transport.heard)
    await until(lambda: operator.talks == [True])
    await line.says(operator, 6)
    heard = line.transport.heard[began:]
    assert sum(_level(piece) == VOICE for piece in heard) >= len(heard) - IN_HAND - CHUNKS_PER_FRAME
    assert {_level(piece) for piece in heard} <= {0, VOICE}, "nothing of the agent's"
    handed = len(line.transport.heard)
    assert (await line.gives("hand_back")).outcome == "done"
    await line.frames(4)
    assert VOICE not in {_level(piece) for piece in line.transport.heard[handed:]}
    assert any(_level(piece) for piece in line.transport.heard[handed:]), "the agent is heard again"
    assert [control.action for control in line.bench.events.of(ControlTaken)  # type: ignore[attr-defined]
            if control.outcome == "held"] == ["hold", "release"]  # type: ignore[attr-defined]
    await line.session.close()
    assert line.bench.recordings is not None
    left, right = line.bench.recordings.sides
    leading = line.transport.crossing.began.leading  # type: ignore[union-attr]
    assert left[leading:leading + len(line.transport.heard)].astype("<i2").tobytes() == b"".join(line.transport.heard)
    assert right[leading + began][0] == 1000 + began, "the caller goes on on the right"
    assert line.spans("take_over") == [("ann", "talked", "")]
    assert line.spans("listen") == [("ann", "listened", "")]
    assert await operator.ended == "over"


async def test_a_second_operator_is_refused_and_a_lost_one_hands_back(line: Line) -> None:
    ann, bob = await line.operator(), await line.operator("bob")
    await line.gives("take_over", tap=ann.id)
    refused = await line.gives("take_over", by="bob", tap=bob.id)
    assert (refused.outcome, refused.why) == ("refused", "ann talks to the caller")
    barred = await line.gives("speak", by="bob")
    assert (barred.outcome, barred.why) == ("refused", "ann talks to the caller")
    ann.link._connection.transport.abort()  # as when her process is killed
    await until(lambda: not line.session.taps.talker)
    await until(lambda: line.spans("take_over")[0][1:] == ("talked", "the connection was lost"))
    await until(lambda: line.bench.worker.controls and len(line.bench.worker.controls) == 2)
    assert (await line.gives("take_over", by="bob", tap=bob.id)).outcome == "talking"


async def test_a_call_that_ends_ends_it_for_the_operator(line: Line) -> None:
    operator = await line.operator()
    await line.gives("take_over", tap=operator.id)
    line.session.hung_up()
    await line.session.close(200)
    assert await operator.ended == "over"
    assert line.spans("take_over") == [("ann", "talked", "the call ended")]
    kinds = line.bench.kinds()
    assert kinds.index("ended") > max(at for at, kind in enumerate(kinds) if kind == "control")


async def test_rules_wait_while_an_operator_talks(tmp_path: Path) -> None:
    async with FakeWorker() as worker:
        bench = Bench(worker, tmp_path)
        bench.rules = (Rule("time", "speak", after_s=0.5),)
        async with _talking(bench) as line:
            operator = await line.operator()
            await line.gives("take_over", tap=operator.id)
            await line.frames(8)
            assert line.spans("speak") == []
            await line.gives("hand_back")
            await line.frames(2)
            await until(lambda: len(line.spans("speak")) == 1)


async def test_nobody_listens_without_a_permission_that_is_good(line: Line) -> None:
    used = await line.operator(id="p.1")
    for grant, secret, at, code in (
            (Grant("p.2", "call-1", "ann"), b"x" * 32, time.time(), "bad_grant"),
            (Grant("p.2", "call-1", "ann"), SECRET, time.time() - 60, "bad_grant"),
            (Grant("p.2", "another", "ann"), SECRET, time.time(), "not_talking"),
            (Grant("p.1", "call-1", "ann"), SECRET, time.time(), "used")):
        with pytest.raises(TapLost) as lost:
            await TapLink.open(line.server.url, taps.sign(grant, secret, at))
        assert lost.value.code == code
    for first in (b"", b"\1\0\0\0\0", wire.encode(wire.Ping(1)), "text"):
        async with connect(line.server.url + taps.PATH) as connection:
            await connection.send(first)
            told = await connection.recv()
            assert isinstance(told, bytes)
            assert isinstance(taps.decode_from_bridge(told), wire.Error)
    assert len(line.spans("listen")) == 1
    assert not used.ended.done()


async def test_a_bridge_that_cant_be_reached_is_told_within_a_bounded_time() -> None:
    with pytest.raises(TapLost) as lost:
        await TapLink.open("ws://127.0.0.1:1", "grant")
    assert lost.value.code == "unreachable"
