from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis.asyncio import Redis

from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallMoved,
    CallReceived,
    EndReason,
    Envelope,
    Measure,
)
from calls.routing import BridgeRegistry, Heartbeat, WorkerRegistry
from calls.settings import Settings
from calls.store import Store
from tandem.doctor import Finding, _all, _of_call, _roles
from tandem.errors import UserError

AT = datetime(2026, 11, 30, tzinfo=UTC)


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert all(finding.advice or finding.verdict == "good" for finding in findings), "what isn't good has advice"
    return {finding.what: finding for finding in findings}


async def test_what_is_there_and_what_is_missing_is_named(
    redis: Redis, redis_url: str, database_url: str, tmp_path: Path,
) -> None:
    found = _by_name(await _all(Settings(redis_url=redis_url, database_url=database_url, data_dir=tmp_path)))
    there = "packages", "Postgres", "Redis", "clock", "events on their way"
    missing = "sip bridges", "webrtc bridges", "workers"
    assert [found[name].verdict for name in there] == ["good"] * len(there)
    assert [found[name].verdict for name in missing] == ["bad"] * len(missing)


async def test_full_bridges_and_workers_are_doubtful(redis: Redis) -> None:
    from calls.routing import health

    await BridgeRegistry(redis, expiry_s=60).beat("b", "sip", 4, 4)
    await WorkerRegistry(redis, expiry_s=60).beat(
        Heartbeat("w", "e", "ws://127.0.0.1:1", {"nano": (4, 4), "echo": (4, 1)}, draining=False))
    found = _by_name(_roles(await health(redis)))
    assert (found["sip bridges"].verdict, found["sip bridges"].found) == ("doubtful", "1, with 4 of 4 calls")
    assert (found["slots of nano"].verdict, found["slots of echo"].verdict) == ("doubtful", "good")


async def test_servers_that_are_away_are_named(tmp_path: Path) -> None:
    here = _by_name(await _all(Settings(data_dir=tmp_path)))
    assert "no Tandem runs on this data folder" in here["Redis"].found
    away = _by_name(await _all(Settings(redis_url="redis://127.0.0.1:1", database_url="postgresql://127.0.0.1:1/x",
                                        data_dir=tmp_path)))
    assert (away["Redis"].verdict, away["Postgres"].verdict) == ("bad", "bad")


async def test_a_calls_troubles_are_told_with_advice(store: Store, database_url: str) -> None:
    slow = (Measure("step", 100, 9.0, 0.06, 0.11, 0.2), Measure("wait", 100, 0.1, 0.001, 0.002, 0.003))
    events = (CallReceived("sip", "inbound", "sip:a@b", "sip:c@d", "r", "bridge-1", "agent"),
              CallLeased("nano", "w1", "e"), CallAnswered("PCMU"), CallMeasured(slow),
              CallMoved("w1", "w2", "closed", 90, 0.4, 100),
              CallEnded(EndReason.WORKER_LOST, "local", 200, "closed: broken", 1000, 0, 80, 2))
    await store.apply([Envelope("call-1", "bridge-1", 1, at, AT, event) for at, event in enumerate(events, 1)])
    found = _by_name(await _of_call(Settings(database_url=database_url), "call-1"))
    assert found["end"].verdict == "bad"
    assert "The call lost its worker and found no other: closed: broken." in found["end"].found
    assert (found["frames missing"].verdict, found["frames dropped"].verdict) == ("bad", "good")
    assert (found["step, p50 / p95"].verdict, found["wait, p50 / p95"].verdict) == ("doubtful", "good")
    assert "from w1 to w2 after 100 frames: closed" in found["moved"].found
    assert found["words of the agent"].verdict == "doubtful"
    with pytest.raises(UserError, match="there is no call none"):
        await _of_call(Settings(database_url=database_url), "none")
