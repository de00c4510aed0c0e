"""What a call's watch does, on a fake leg whose clock runs fast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from typing import Any, cast

import pytest

from calls.events import EndReason
from media.session import Session
from sip import watch as watch_module
from sip.endpoint import Endpoint
from sip.leg import Leg, Media, Traffic
from sip.watch import Watch


@dataclass
class FakeLeg:
    received: Iterator[int]
    media: Media | None = field(default_factory=lambda: Media(0, "PCMU", held_by=""))
    reports: Iterator[tuple[int, int]] = field(default_factory=lambda: repeat((0, 0)))  # of theirs, what they lost
    media_up: asyncio.Event = field(default_factory=asyncio.Event)
    picked_up: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    def traffic(self) -> Traffic:
        self.sent += 100
        reports, lost = next(self.reports)
        return Traffic(next(self.received), self.sent, lost, reports)


@dataclass
class FakeLine:
    notes: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, what: str, side: str, text: str = "") -> None:
        self.notes.append((what, side, text))


@dataclass
class FakeSession:
    call: str = "call-1"
    ends: list[tuple[EndReason, str]] = field(default_factory=list)
    line: FakeLine = field(default_factory=FakeLine)

    def end(self, reason: EndReason, detail: str) -> None:
        self.ends.append((reason, detail))


class DirectEndpoint:
    async def command(self, work: Callable[[], Any]) -> Any:
        return work()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "ACK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(watch_module, "CHECK_S", 0.005)
    monkeypatch.setattr(watch_module, "STOPPED_S", 0.025)
    monkeypatch.setattr(watch_module, "LOST_S", 0.1)


def watched(leg: FakeLeg) -> tuple[FakeSession, asyncio.Task[None]]:
    session = FakeSession()
    leg.media_up.set()
    leg.picked_up.set()
    watch = Watch(cast(Leg, leg), cast(Session, session), cast(Endpoint, DirectEndpoint()))
    return session, asyncio.create_task(watch.run())


async def test_an_answer_that_is_never_acknowledged_ends_the_call() -> None:
    session, watch = watched(FakeLeg(iter(())))
    await asyncio.wait_for(watch, 5)
    assert session.ends == [(EndReason.FAILED, "the caller never acknowledged the answer")]


async def test_a_caller_from_whom_nothing_comes_any_more_is_told_in_the_log_and_then_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leg = FakeLeg(iter([10, 20, *[20] * 1000]))
    leg.acknowledged.set()
    session, watch = watched(leg)
    await asyncio.wait_for(watch, 5)
    [(reason, detail)] = session.ends
    assert reason is EndReason.MEDIA_LOST
    assert detail.startswith("nothing came from the caller")
    assert [record.message for record in caplog.records] == ["call call-1: no sound comes from the other side"]
    assert session.line.notes == [("sound_stopped", "remote", "no packet comes any more")]


async def test_sound_that_stops_and_comes_back_is_noted_once_each() -> None:
    leg = FakeLeg(chain([1, 2], [2] * 10, count(3)))
    leg.acknowledged.set()
    session, watch = watched(leg)
    async with asyncio.timeout(5):
        while len(session.line.notes) < 2:
            await asyncio.sleep(0.005)
    watch.cancel()
    assert session.line.notes == [("sound_stopped", "remote", "no packet comes any more"), ("sound_back", "remote", "")]
    assert session.ends == []


async def test_sound_of_ours_that_the_other_side_never_gets_is_one_way() -> None:
    reports = chain([(0, 0), (1, 0), (2, 100)], repeat((3, 110)))
    leg = FakeLeg(count(1), reports=reports)
    leg.acknowledged.set()
    session, watch = watched(leg)
    async with asyncio.timeout(5):
        while len(session.line.notes) < 2:
            await asyncio.sleep(0.005)
    watch.cancel()
    [one_way, back] = session.line.notes
    assert one_way == ("sound_one_way", "local", "100 of 100 packets of ours were lost on the way")
    assert back[:2] == ("sound_back", "local")


@pytest.mark.parametrize("on_hold", [True, False])
async def test_a_caller_on_hold_or_who_speaks_stays(on_hold: bool) -> None:
    leg = FakeLeg(iter(range(10**6)) if not on_hold else iter([5] * 10**6))
    leg.media = Media(0, "PCMU", "remote" if on_hold else "")
    leg.acknowledged.set()
    session, watch = watched(leg)
    done, _ = await asyncio.wait((watch,), timeout=0.3)
    assert not done
    assert session.ends == []
    watch.cancel()
