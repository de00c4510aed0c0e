"""Bans as edges say them through Redis, and orders to lift them, with a real Redis."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from told_edge import NAME, answering, ban, says

from calls.bans import FORGOTTEN_S, KEY, TOLD_S, NotLifted, lift, orders_key, said


async def test_each_edge_that_lives_says_whom_it_has_banned(redis: Redis) -> None:
    flooder, scanner = ban("192.0.2.1"), ban("192.0.2.2", "scanner")
    await says(redis, flooder, scanner)
    await says(redis, name="another", count=5000)
    await says(redis, ban("192.0.2.3"), name="silent", ago_s=TOLD_S + 1)
    await says(redis, ban("192.0.2.4"), name="forgotten", ago_s=FORGOTTEN_S + 1)
    assert [(edge.edge, edge.count, edge.bans) for edge in await said(redis)] == [
        (NAME, 2, (flooder, scanner)), ("another", 5000, ())]
    assert set(await redis.hkeys(KEY)) == {NAME.encode(), b"another", b"silent"}


async def test_whoever_is_banned_anywhere_is_let_in_everywhere(redis: Redis) -> None:
    async with (answering(redis, ban("192.0.2.1"), name="one") as one,
                answering(redis, ban("192.0.2.1"), ban("192.0.2.2"), name="two") as two):
        assert await lift(redis, "192.0.2.1")
        assert (list(one), list(two)) == ([], ["192.0.2.2"])
        assert await lift(redis, "192.0.2.2")
        assert not await lift(redis, "192.0.2.2")
    await redis.delete(KEY)
    assert not await lift(redis, "192.0.2.2")


async def test_an_edge_that_doesnt_answer_is_waited_for_so_long_and_no_longer(
        redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calls.bans.WAIT_S", 0.3)
    await says(redis, ban("192.0.2.1"))
    with pytest.raises(NotLifted, match="doesn't answer"):
        await lift(redis, "192.0.2.1")
    assert await redis.pttl(orders_key(NAME)) in (-2, *range(300)), "nor is it done later"
