"""How every role opens Redis and its scripts: one client, whose waits are all bounded."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import TimeoutError as AnswerTimeout

CONNECT_S = 2.0
ANSWER_S = 5.0


class BoundedRedis(Redis):
    """Every command is answered within ANSWER_S, or raises redis.exceptions.TimeoutError.

    The client's own `socket_timeout` isn't used for it: with one, a task that is cancelled while it waits for Redis
    now and then isn't (redis-py 8.1), and whoever waits for the task's end waits for ever.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except TimeoutError:
            raise AnswerTimeout(f"no answer within {ANSWER_S:g} s") from None


def open_redis(url: str, *, max_connections: int = 64) -> Redis:
    """A client for `url` (redis://, rediss://, unix://). It connects at the first command, and asks once more
    only where a kept connection turned out to be closed, as after a restart of Redis.
    """
    return BoundedRedis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=None,
                                 max_connections=max_connections, retry=Retry(NoBackoff(), 1))


def script(redis: Redis, *names: str) -> AsyncScript:
    """The script of these files of `calls/lua`, one after the other."""
    folder = files("calls").joinpath("lua")
    return redis.register_script("\n".join(folder.joinpath(f"{name}.lua").read_text() for name in names))


def as_text(value: Any) -> str:
    """What a script answered, whether or not the client decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)
