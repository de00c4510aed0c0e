"""Calls that wait for a slot of a model, over all processes: first come, first served. By calls/lua/queue.lua."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import script
from calls.routing import RoutingUnavailable

KEPT_S = 5.0  # of a call that doesn't ask any more


class Queue:
    """Methods raise RoutingUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._place = script(redis, "queue")

    async def length(self, model: str) -> int:
        """How many wait now."""
        return await self._ask(model, "", 0)

    async def before(self, model: str, call: str, most: int) -> int | None:
        """How many wait before this call, which waits from now on as long as it asks again within KEPT_S; None where
        `most` wait already."""
        place = await self._ask(model, call, most)
        return place if place >= 0 else None

    async def leave(self, model: str, call: str) -> None:
        try:
            for key in _keys(model)[:2]:
                await self._redis.zrem(key, call)
        except (RedisError, OSError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error

    async def _ask(self, model: str, call: str, most: int) -> int:
        try:
            return int(await self._place(_keys(model), (call, round(1000 * KEPT_S), most)))
        except (RedisError, OSError) as error:
            raise RoutingUnavailable(f"Redis: {error}") from error


def _keys(model: str) -> list[str]:
    return [f"tandem:{{queue {model}}}:{name}" for name in ("order", "waiting", "arrivals")]
