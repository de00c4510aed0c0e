"""How many calls of a kind there are at a time: to a number, by a caller, over a trunk, that we make."""

from __future__ import annotations

import asyncio
import contextlib

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.limits import CallLimits


class Counting:
    """One process's calls among those of all. Without Redis no limit is kept: no slot can be had then, either."""

    def __init__(self, redis: Redis, renewed_every_s: float) -> None:
        self._limits, self._pause_s = CallLimits(redis), renewed_every_s
        self._kinds: dict[str, set[str]] = {}  # by call

    async def within(self, kind: str, call: str, most: int | None) -> bool:
        """Whether the call is within this limit; it counts until `leave`."""
        if most is None:
            return True
        try:
            if not await self._limits.take(kind, call, most):
                return False
        except (RedisError, OSError):
            return True
        self._kinds.setdefault(call, set()).add(kind)
        return True

    async def leave(self, call: str) -> None:
        """Raises RedisError and OSError; then it expires."""
        for kind in self._kinds.pop(call, ()):
            await self._limits.leave(kind, call)

    async def run(self) -> None:
        """Until cancelled: calls that go on go on counting."""
        while True:
            await asyncio.sleep(self._pause_s)
            with contextlib.suppress(RedisError, OSError):
                await self._limits.renew((kind, call) for call, kinds in self._kinds.items() for kind in kinds)
