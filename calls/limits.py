"""How many calls of a kind there are at a time, over all processes: sets in Redis whose members expire."""

from __future__ import annotations

import time
from collections.abc import Iterable

from redis.asyncio import Redis

KEPT_S = 60.0  # of a call whose process has died


def _key(kind: str) -> str:
    return f"tandem:{{calls at a time {kind}}}"


class CallLimits:
    """Methods raise RedisError and OSError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def take(self, kind: str, call: str, most: int) -> bool:
        """Whether this call is within the limit; then it counts until `leave`, as long as it is renewed."""
        now, key = time.time(), _key(kind)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.zremrangebyscore(key, 0, now)
        pipeline.zadd(key, {call: now + KEPT_S})
        pipeline.zcard(key)
        pipeline.pexpire(key, round(2000 * KEPT_S))
        *_, count, _ = await pipeline.execute()
        if count > most:
            await self.leave(kind, call)
        return bool(count <= most)

    async def renew(self, taken: Iterable[tuple[str, str]]) -> None:
        """(kind, call) of those that go on."""
        pipeline = self._redis.pipeline(transaction=False)
        for kind, call in taken:
            pipeline.zadd(_key(kind), {call: time.time() + KEPT_S}, xx=True)
            pipeline.pexpire(_key(kind), round(2000 * KEPT_S))
        if len(pipeline):
            await pipeline.execute()

    async def leave(self, kind: str, call: str) -> None:
        await self._redis.zrem(_key(kind), call)
