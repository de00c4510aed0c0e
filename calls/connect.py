"""How every role opens Redis and its scripts: one client, whose waits are all bounded."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript

CONNECT_S = 2.0
ANSWER_S = 5.0


def open_redis(url: str, *, max_connections: int = 64) -> Redis:
    """A client for `url` (redis://, rediss://, unix://). It connects at the first command, and asks once more
    only where a kept connection turned out to be closed, as after a restart of Redis.
    """
    return Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=ANSWER_S,
                          max_connections=max_connections, retry=Retry(NoBackoff(), 1))


def script(redis: Redis, *names: str) -> AsyncScript:
    """The script of these files of `calls/lua`, one after the other."""
    folder = files("calls").joinpath("lua")
    return redis.register_script("\n".join(folder.joinpath(f"{name}.lua").read_text() for name in names))


def as_text(value: Any) -> str:
    """What a script answered, whether or not the client decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)
