"""Calls whose bridge is gone have an end all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from persisting import ENDED, RECEIVED, persisting, until, until_asked, writing
from redis.asyncio import Redis

from calls.events import CallAnswered
from calls.live import EventWriter
from calls.orphans import end_orphans
from calls.reports import Reports
from calls.routing import BridgeRegistry, RoutingUnavailable
from calls.settings import Settings
from calls.store import Store

SILENT_S = 0.3


@pytest.fixture
async def ends(redis: Redis, store: Store, both: Settings) -> AsyncIterator[EventWriter]:
    """A persister that looks for them; its ends come from this writer."""
    stop = asyncio.Event()
    async with persisting(both), writing(redis, "ends") as writer:
        looking = asyncio.create_task(
            end_orphans(redis, Reports(store), writer, stop, silent_s=SILENT_S, sweep_s=0.05))
        yield writer
        stop.set()
        await looking


async def test_the_call_of_a_bridge_that_died_ends_and_that_of_one_that_lives_doesnt(
        redis: Redis, store: Store, ends: EventWriter) -> None:
    registry = BridgeRegistry(redis, expiry_s=30)
    await registry.beat("alive", "sip", 1, 4)
    async with writing(redis) as writer:
        for bridge in ("alive", "dead"):
            writer.emit(bridge, 0, replace(RECEIVED, bridge=bridge))
            writer.emit(bridge, 1, CallAnswered("PCMU"))
        await until(lambda: writer.unsaved == 0, "both calls are known")

    async def has_ended() -> bool:
        row = await store.call("dead")
        return row is not None and row.end_reason == "bridge_lost"

    await until_asked(has_ended, "the call of the dead bridge has ended")
    row, other = await store.call("dead"), await store.call("alive")
    assert row is not None
    assert other is not None
    assert row.ended_at is not None
    assert row.answered_at is not None
    assert row.ended_at > row.answered_at
    assert row.q850 == 41
    assert other.ended_at is None
    await until(lambda: ends.unsaved == 0, "it is said once")


async def test_a_bridge_that_was_only_silent_has_the_last_word(redis: Redis, store: Store, ends: EventWriter) -> None:
    async with writing(redis) as writer:
        writer.emit("call", 0, RECEIVED)

        async def reason(wanted: str) -> bool:
            row = await store.call("call")
            return row is not None and row.end_reason == wanted

        await until_asked(lambda: reason("bridge_lost"), "it is given up")
        writer.emit("call", 0, ENDED)
        await until_asked(lambda: reason("caller_hung_up"), "its own end counts")
    row = await store.call("call")
    assert row is not None
    assert row.end_reason == "caller_hung_up"


async def test_while_redis_knows_nobody_no_call_is_given_up(
        redis: Redis, store: Store, ends: EventWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = BridgeRegistry(redis, expiry_s=30)
    await registry.beat(RECEIVED.bridge, "sip", 1, 4)
    async with writing(redis) as writer:
        writer.emit("call", 0, RECEIVED)
        await until(lambda: writer.unsaved == 0, "the call is known")
        await redis.flushdb()
        await asyncio.sleep(SILENT_S / 3)
        await registry.beat(RECEIVED.bridge, "sip", 1, 4)
        await asyncio.sleep(2 * SILENT_S)
    row = await store.call("call")
    assert row is not None
    assert row.ended_at is None


async def test_while_redis_takes_no_writes_nobody_has_fallen_silent(
        redis: Redis, store: Store, ends: EventWriter) -> None:
    """As when its disk is full: it answers, and has forgotten who is alive."""
    registry = BridgeRegistry(redis, expiry_s=SILENT_S / 2)
    await registry.beat(RECEIVED.bridge, "sip", 1, 4)
    async with writing(redis) as writer:
        writer.emit("call", 0, RECEIVED)
        await until(lambda: writer.unsaved == 0, "the call is known")
        await redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(RoutingUnavailable):
                await registry.beat(RECEIVED.bridge, "sip", 1, 4)
            await asyncio.sleep(3 * SILENT_S)
            assert ends.unsaved == 0
        finally:
            await redis.config_set("maxmemory", 0)
        await registry.beat(RECEIVED.bridge, "sip", 1, 4)
    row = await store.call("call")
    assert row is not None
    assert row.ended_at is None
