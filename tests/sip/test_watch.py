"""What a call's watch does, on a fake leg whose clock runs fast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from calls.events import EndReason
from media.session import Session
from sip import call as call_module
from sip.call import Leg, Media, SipCall
from sip.endpoint import Endpoint


@dataclass
class FakeLeg:
    packets: Iterator[int]
    media: Media | None = field(default_factory=lambda: Media(0, "PCMU", on_hold=False))
    media_up: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)

    def packets_received(self) -> int:
        return next(self.packets)


@dataclass
class FakeSession:
    call: str = "call-1"
    ends: list[tuple[EndReason, str]] = field(default_factory=list)

    def end(self, reason: EndReason, detail: str) -> None:
        self.ends.append((reason, detail))


class DirectEndpoint:
    async def command(self, work: Callable[[], Any]) -> Any:
        return work()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "ACK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(call_module, "RTP_CHECK_S", 0.005)
    monkeypatch.setattr(call_module, "RTP_LOST_S", 0.05)


def watched(leg: FakeLeg) -> tuple[FakeSession, asyncio.Task[None]]:
    session = FakeSession()
    leg.media_up.set()
    call = SipCall(cast(Leg, leg), cast(Session, session), cast(Endpoint, DirectEndpoint()), 10)
    return session, asyncio.create_task(call._watch())


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
    assert [record.message for record in caplog.records] == ["call call-1: no sound comes from the caller"]


@pytest.mark.parametrize("on_hold", [True, False])
async def test_a_caller_on_hold_or_who_speaks_stays(on_hold: bool) -> None:
    leg = FakeLeg(iter(range(10**6)) if not on_hold else iter([5] * 10**6))
    leg.media = Media(0, "PCMU", on_hold)
    leg.acknowledged.set()
    session, watch = watched(leg)
    done, _ = await asyncio.wait((watch,), timeout=0.3)
    assert not done
    assert session.ends == []
    watch.cancel()
