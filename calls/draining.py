"""Workers that shall take no calls: said by operators through Redis, heard by the worker at its next sign of life."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text
from calls.routing import Heartbeat, Refusal, RoutingUnavailable, health

ORDER_KEPT_S = 3600  # a worker remembers it longer than Redis, as long as it lives


class NoSuchWorker(Refusal):
    """No worker of this name is alive."""


def _key(worker: str) -> str:
    return f"tandem:{{worker {worker}}}:drains"


async def order(redis: Redis, worker: str, *, drain: bool) -> Heartbeat:
    """Have a worker take no new calls and move those it has; or, without `drain`, take calls again. Returns what is
    known of it now. `worker` may be the beginning of its name, where only one's begins so. Raises NoSuchWorker and
    RoutingUnavailable."""
    alive = [one for one in (await health(redis)).workers if one.worker.startswith(worker)]
    if len(alive) != 1:
        names = ", ".join(one.worker for one in alive)
        raise NoSuchWorker(f"{worker!r} may be {names}" if alive else f"no worker {worker!r} is alive")
    try:
        await redis.set(_key(alive[0].worker), "1" if drain else "0", ex=ORDER_KEPT_S)
    except (RedisError, OSError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error
    return alive[0]


async def ordered(redis: Redis, worker: str) -> bool | None:
    """Whether this worker shall drain; None where nobody has said so. Raises RedisError."""
    said = await redis.get(_key(worker))
    return None if said is None else as_text(said) == "1"
