"""An edge as others know it, through Redis: it says whom it has banned, and lets in whom operators name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from calls.bans import KEY, LIFTED, UNKNOWN, Ban, EdgeBans, encoded, order_of, orders_key, reply_key

NAME = "203.0.113.5:5060"


def ban(address: str, why: str = "flood", ago_s: float = 20.0) -> Ban:
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=ago_s)
    return Ban(address, why, since, since + timedelta(seconds=300))


async def says(redis: Redis, *bans: Ban, name: str = NAME, count: int | None = None, ago_s: float = 0.0) -> None:
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    await redis.hset(KEY, name, encoded(EdgeBans(name, at, len(bans) if count is None else count, bans)))


@asynccontextmanager
async def answering(redis: Redis, *bans: Ban, name: str = NAME) -> AsyncIterator[dict[str, Ban]]:
    """Those that are left."""
    left = {each.address: each for each in bans}

    async def answer() -> None:
        while True:
            order = order_of((await redis.blpop([orders_key(name)], timeout=0))[1])
            outcome = UNKNOWN if left.pop(order.address, None) is None else LIFTED
            await says(redis, *left.values(), name=name)
            await redis.rpush(reply_key(order.id), outcome)

    await says(redis, *bans, name=name)
    answers = asyncio.create_task(answer())
    try:
        yield left
    finally:
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
