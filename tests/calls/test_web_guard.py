from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from calls.connect import open_redis
from calls.routing import RoutingUnavailable
from calls.web_guard import WebGuard, network_of


async def test_so_many_requests_are_allowed_and_then_the_wait_is_told(redis: Redis) -> None:
    guard = WebGuard(redis, 3)
    assert [await guard.wait_s("calls", "192.0.2.1") for _ in range(3)] == [0, 0, 0]
    assert 0 < await guard.wait_s("calls", "192.0.2.1") <= 60


async def test_others_and_other_kinds_of_requests_are_counted_apart(redis: Redis) -> None:
    guard = WebGuard(redis, 1)
    assert await guard.wait_s("calls", "192.0.2.1") == 0
    assert await guard.wait_s("calls", "192.0.2.2") == 0
    assert await guard.wait_s("offers", "192.0.2.1") == 0
    assert await guard.wait_s("calls", "192.0.2.1") > 0


async def test_after_the_window_requests_are_allowed_again(redis: Redis) -> None:
    guard = WebGuard(redis, 1, window_s=0.05)
    assert await guard.wait_s("calls", "192.0.2.1") == 0
    await asyncio.sleep(await guard.wait_s("calls", "192.0.2.1") + 0.01)
    assert await guard.wait_s("calls", "192.0.2.1") == 0


@pytest.mark.parametrize(("address", "network"), [
    ("192.0.2.1", "192.0.2.1"), ("2001:db8::1:2", "2001:db8::/64"), ("::ffff:192.0.2.1", "192.0.2.1"), ("x", "x")])
def test_an_ipv6_network_counts_as_one(address: str, network: str) -> None:
    assert network_of(address) == network


async def test_a_token_serves_once_and_of_many_at_once_one_wins(redis: Redis) -> None:
    guard = WebGuard(redis, 1)
    used = await asyncio.gather(*(guard.use("call", "id-1", 60) for _ in range(10)))
    assert sorted(used) == [False] * 9 + [True]
    assert await guard.use("call", "id-2", 60)


async def test_without_redis_nobody_is_let_in() -> None:
    async with open_redis("redis://127.0.0.1:1") as away:
        guard = WebGuard(away, 1)
        with pytest.raises(RoutingUnavailable):
            await guard.wait_s("calls", "192.0.2.1")
        with pytest.raises(RoutingUnavailable):
            await guard.use("call", "id-1", 60)
