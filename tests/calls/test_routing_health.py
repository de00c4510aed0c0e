"""Who lives, and what a bridge or worker does without Redis."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from calls.connect import open_redis
from calls.routing import (
    BridgeHealth,
    BridgeRegistry,
    Busy,
    Heartbeat,
    Lease,
    Router,
    RoutingUnavailable,
    WorkerRegistry,
    health,
)

SECRET = b"thirty-two bytes or more of secret"
MODEL = "moshi"


@pytest.fixture
def workers(redis: Redis) -> WorkerRegistry:
    return WorkerRegistry(redis, expiry_s=60)


def beat(worker: str, slots: int = 2, *, used: int = 0, draining: bool = False) -> Heartbeat:
    return Heartbeat(worker, "e1", f"ws://{worker}:8998", {MODEL: (slots, used)}, draining)


async def test_without_redis_a_call_is_refused_and_nobody_waits_long(tmp_path: Path) -> None:
    async with open_redis(f"unix://{tmp_path}/nobody.sock") as nowhere:
        router = Router(nowhere, SECRET, lease_s=6)
        lease = Lease("call", MODEL, "w", "e", "ws://w", 1, 0.0)
        for work in (router.acquire("call", MODEL), router.renew(lease), router.release(lease), health(nowhere),
                     WorkerRegistry(nowhere, expiry_s=5).beat(beat("w")),
                     BridgeRegistry(nowhere, expiry_s=5).beat("b", "sip", 0, 4)):
            with pytest.raises(RoutingUnavailable, match="Redis") as raised:
                await work
            assert raised.value.sip_status == 503


@pytest.fixture
async def deaf_redis_url() -> AsyncIterator[str]:
    """Something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_redis_that_doesnt_answer_is_given_up_after_the_stated_wait(deaf_redis_url: str) -> None:
    async with open_redis(deaf_redis_url) as redis:
        router = Router(redis, SECRET, lease_s=6, wait_s=0.05)
        with pytest.raises(RoutingUnavailable, match="within 0.05 s"):
            await router.acquire("call", MODEL)


async def test_health_shows_who_lives_and_forgets_the_silent(redis: Redis) -> None:
    workers, bridges = WorkerRegistry(redis, expiry_s=60), BridgeRegistry(redis, expiry_s=60)
    assert not (await health(redis)).ready
    await bridges.beat("b1", "sip", 1, 4)
    assert not (await health(redis)).ready
    await workers.beat(beat("w1", 4, used=1))
    found = await health(redis)
    assert found.ready
    assert found.bridges == (BridgeHealth("b1", "sip", 1, 4),)
    assert found.workers == (beat("w1", 4, used=1),)
    assert await redis.zadd("tandem:{alive}:workers:until", {"w1": 1}, xx=True, ch=True)
    found = await health(redis)
    assert not found.ready
    assert found.workers == ()
    await bridges.leave("b1")
    assert (await health(redis)).bridges == ()
    await workers.beat(beat("w2"))
    assert await redis.hkeys("tandem:{alive}:workers") == [b"w2"]


async def test_a_worker_that_drains_or_has_no_slots_isnt_ready(redis: Redis, workers: WorkerRegistry) -> None:
    await BridgeRegistry(redis, expiry_s=60).beat("b1", "sip", 0, 4)
    await workers.beat(beat("w1", 0))
    assert not (await health(redis)).ready
    await workers.beat(beat("w1", 4, draining=True))
    assert not (await health(redis)).ready


async def test_a_worker_that_cant_be_reached_gets_no_call_until_its_next_sign_of_life(
    redis: Redis, workers: WorkerRegistry,
) -> None:
    router = Router(redis, SECRET, lease_s=60)
    await workers.beat(beat("a", slots=4))
    await workers.beat(beat("b", slots=1))
    first = await router.acquire("call", MODEL)
    assert first.worker == "a"
    await router.avoid(first)
    assert (await router.acquire("call", MODEL, fence_above=first.fence)).worker == "b"
    with pytest.raises(Busy):
        await router.acquire("another", MODEL)
    await workers.beat(beat("a", slots=4))
    assert (await router.acquire("another", MODEL)).worker == "a"


async def test_a_worker_without_time_for_more_calls_is_busy_and_keeps_those_it_has(
        redis: Redis, workers: WorkerRegistry) -> None:
    router = Router(redis, SECRET, lease_s=60)
    await workers.beat(replace(beat("w", 4), full=(MODEL,)))
    with pytest.raises(Busy):  # not that nobody offers the model
        await router.acquire("call", MODEL)
    await workers.beat(beat("w", 4))
    lease = await router.acquire("call", MODEL)
    await workers.beat(replace(beat("w", 4, used=1), full=(MODEL,)))
    assert (await router.renew(lease)).fence == lease.fence
    with pytest.raises(Busy):
        await router.acquire("another", MODEL)
    await workers.beat(beat("w", 4, used=1))
    await router.acquire("another", MODEL)
