"""`tandem drain`: workers, and that one of them shall take no more calls."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from calls import draining
from calls.connect import open_redis
from calls.routing import Heartbeat, RoutingUnavailable, health
from calls.settings import Settings
from tandem.embedded import EmbeddedError, running_redis
from tandem.errors import UserError, told_in_one_line

POLL_S = 0.5


def drain(settings: Settings, worker: str | None, *, off: bool, wait_s: float) -> None:
    """List the workers; or have one drain, and wait until it has no call any more. Raises UserError."""
    with told_in_one_line(EmbeddedError):
        url = settings.redis_url.get_secret_value() if settings.redis_url else running_redis(settings.data_dir)
    with told_in_one_line(draining.NoSuchWorker, RoutingUnavailable):
        asyncio.run(_drain(url, worker, off, wait_s))


async def _drain(url: str, worker: str | None, off: bool, wait_s: float) -> None:
    async with open_redis(url) as redis:
        if worker is None:
            for one in (await health(redis)).workers:
                print(_line(one))
            return
        name = (await draining.order(redis, worker, drain=not off)).worker
        if off:
            print(f"{name} takes calls again")
            return
        left = await _until_empty(redis, name, wait_s)
        if left:
            raise UserError(f"{name} takes no new calls, but still has {left} after {wait_s:g} s: nobody else has a "
                            "slot for them; they go on there")
        print(f"{name} takes no new calls and has none")


async def _until_empty(redis: Redis, name: str, wait_s: float) -> int:
    """How many calls a draining worker has left after at most `wait_s`; one that is gone has none."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        found = [one for one in (await health(redis)).workers if one.worker == name]
        left = sum(used for one in found for _, used in one.models.values())
        told = all(one.draining for one in found)
        if (told and not left) or loop.time() >= deadline:
            return left
        await asyncio.sleep(POLL_S)


def _line(one: Heartbeat) -> str:
    models = ", ".join(f"{name} {used} of {slots}{' (no time for more)' if name in one.full else ''}"
                       for name, (slots, used) in one.models.items())
    return f"{one.worker}  {one.url}  {models}{'  draining' if one.draining else ''}"
