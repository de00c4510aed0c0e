"""The configuration's way from Postgres to the bridges: versioned snapshots in a Redis stream of one entry.

    web role: publish ──XADD version-0, MAXLEN 1──▶ stream ──XREAD BLOCK──▶ bridges: Follower.now

An entry's id is its version, so Redis itself lets no older one come after a newer one. A bridge goes on with what it
read last while Redis is away; a Redis that came back empty is filled again by the web role.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from calls.agents import Configuration, version_0
from calls.live import Pause
from calls.routing import RoutingUnavailable
from calls.settings import Settings

KEY = "tandem:{configuration}"
BLOCK_S = 2.0
FIRST_S = 2.0  # for which a bridge that begins waits for its first snapshot

log = logging.getLogger(__name__)


async def publish(redis: Redis, configuration: Configuration) -> int:
    """Let all have it; returns the version that they have by now. Raises RoutingUnavailable."""
    try:
        with contextlib.suppress(ResponseError):  # this version, or a newer one, is there
            await redis.xadd(KEY, {"snapshot": configuration.model_dump_json()}, id=f"{configuration.version}-0",
                             maxlen=1, approximate=False)
        return (await published(redis)).version
    except (RedisError, OSError) as error:
        raise RoutingUnavailable(f"Redis: {error}") from error


async def published(redis: Redis) -> Configuration:
    """The newest snapshot; version 0, without agents, where there is none. Raises RedisError and OSError."""
    newest: Any = await redis.xrevrange(KEY, count=1)
    return _read(newest[0][1]) or Configuration() if newest else Configuration()


class Follower:
    """A process's view of the configuration, always the newest that it could read: over the settings' own agents."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self.now = version_0(settings)
        self._read_once = asyncio.Event()

    async def first(self) -> None:
        """Returns when the newest snapshot has been read, or after FIRST_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                await self._read_once.wait()

    async def run(self) -> None:
        """Follow it, until cancelled."""
        last, pause, block_ms = "0-0", Pause(), None
        while True:
            try:
                found: Any = await self._redis.xread({KEY: last}, count=1, block=block_ms)
            except (RedisError, OSError) as error:
                log.warning("the configuration stays as it is, version %d: Redis: %s", self.now.version, error)
                await asyncio.sleep(pause.next_s())
                continue
            pause.reset()
            for _, entries in found or ():
                for id, fields in entries:
                    last = id
                    self._take(fields)
            self._read_once.set()
            block_ms = round(1000 * BLOCK_S)

    def _take(self, fields: Any) -> None:
        if (snapshot := _read(fields)) is not None:
            self.now = snapshot.over(self._settings)
            log.info("configuration version %d: %d agents, %d numbers", snapshot.version, len(self.now.agents),
                     len(self.now.numbers))


def _read(fields: Any) -> Configuration | None:
    try:
        return Configuration.model_validate_json(fields[b"snapshot"] if b"snapshot" in fields else fields["snapshot"])
    except (ValidationError, KeyError) as error:
        log.error("a snapshot of the configuration can't be read, and is left out: %s", str(error).splitlines()[0])
        return None
