"""What keeps browsers in bounds, in Redis: how often an address may ask, and that a token serves once."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import script
from calls.routing import RoutingUnavailable

WINDOW_S = 60.0
Answer = TypeVar("Answer")


def network_of(address: str) -> str:
    """Who counts as one: an IPv4 address, or an IPv6 network of 64 bits, of which one browser has all."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def name_of(name: str) -> str:
    """Who counts as one, by a name that may be anything."""
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:32]


class WebGuard:
    """Methods raise RoutingUnavailable."""

    def __init__(self, redis: Redis, most: int, *, window_s: float = WINDOW_S) -> None:
        """`most` requests of a kind, in a window, by one address."""
        self._redis = redis
        self._most, self._window_s = most, window_s
        self._rate = script(redis, "rate")

    async def wait_s(self, kind: str, address: str) -> float:
        """0 when one more request is allowed, else in how many seconds."""
        keys = (f"tandem:{{rate {kind} {network_of(address)}}}",)
        return int(await _ask(lambda: self._rate(keys, (self._most, round(1000 * self._window_s))))) / 1000

    async def use(self, kind: str, id: str, good_for_s: float) -> bool:
        """Whether this is the first use of a token that expires within `good_for_s`."""
        key = f"tandem:{{used {kind} {id}}}"
        return bool(await _ask(lambda: self._redis.set(key, 1, nx=True, px=round(1000 * good_for_s))))


async def _ask(work: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        return await work()
    except (RedisError, OSError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error
