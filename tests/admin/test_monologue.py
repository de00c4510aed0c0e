"""What agents write, as those who follow calls are told of it, by WebSocket and by server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from api_client import Api
from redis.asyncio import Redis

from calls.controls import ControlInbox
from calls.events import CallReceived, Envelope
from calls.monologues import MonologueTeller, Told, Written
from calls.store import Store

RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "bridge-1", "agent")
FORCED = Written(7, "pad", "", "forced", True, "piece", "▁well")
TOLD = {"type": "monologue", "frames": [{"k": 7, "token": "pad", "piece": "", "how": "forced", "muted": True,
                                         "wanted": "piece", "wanted_piece": "▁well"}]}


@pytest.fixture
async def bridge(redis: Redis, store: Store) -> AsyncIterator[None]:
    """Two calls whose agents are held and muted."""
    at = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
    await store.apply([Envelope(call, "bridge-1", 1, 1, at, RECEIVED) for call in ("call-1", "call-2")])
    await ControlInbox(redis, "bridge-1").here(["call-1", "call-2"], 30)
    teller = MonologueTeller(redis)

    def take() -> Told:
        return {"call-1": (FORCED,), "call-2": (FORCED,)}

    async def beat() -> None:
        while True:
            await teller.look()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(beat()), asyncio.create_task(teller.run(take))]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("key", ["reads", "both"])
async def test_a_live_connection_tells_what_its_agent_writes_when_asked(api: Api, bridge: None, key: str) -> None:
    async with api.live(key, query="?monologue=true") as socket, api.live(key) as without, asyncio.timeout(10):
        assert json.loads(await without.recv())["type"] == "snapshot"
        assert json.loads(await socket.recv())["type"] == "snapshot"
        assert [json.loads(await socket.recv()) for _ in range(3)] == 3 * [TOLD]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await without.recv()


async def test_who_may_not_see_calls_is_told_nothing(api: Api, bridge: None) -> None:
    async with api.live("controls", query="?monologue=true") as socket, asyncio.timeout(10):
        assert json.loads(await socket.recv())["error"] == "forbidden"
    assert (await api.ask("/live/events?monologue=true", key="controls")).status == 403


@pytest.mark.parametrize(("query", "calls"), [
    ("?monologue=true", {"call-1", "call-2"}), ("?monologue=true&call=call-2", {"call-2"}), ("", set())])
async def test_server_sent_events_tell_it_of_all_calls_or_of_one(
        api: Api, bridge: None, query: str, calls: set[str]) -> None:
    told: list[dict[str, Any]] = []
    async with api.events(f"/live/events{query}", key="reads") as events:
        try:
            async with asyncio.timeout(2):
                async for data in events:
                    told.append(json.loads(data))
        except TimeoutError:
            pass
    written = [message for message in told if message["type"] == "monologue"]
    assert {message["call"] for message in written} == calls
    assert all(message == {"call": message["call"], **TOLD} for message in written)
