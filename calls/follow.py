"""Calls that run, as they are heard: a process's view of the event streams, for many who watch.

    bridges ──▶ 16 streams ──▶ LiveEvents: one reader for each stream that somebody watches ──▶ Watchers' queues

Nothing is acknowledged here; the persister does that. A watcher that doesn't keep up is cut off, and may begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.events import BadEvent, Envelope, decode
from calls.live import PARTITIONS, Pause, partition_of, stream_key

log = logging.getLogger(__name__)

BEFORE_S = 5.0  # of what happened just before somebody began to watch: not all of it may be in Postgres yet
WAITING = 512  # events that a watcher of a call may be behind
WAITING_ALL = 4096  # and one of all calls
BLOCK_S = 1.0
READ_AT_ONCE = 200


class TooSlow(Exception):
    """This watcher was more events behind than may wait for it."""


class Watcher:
    """Events of one call, or of all, from BEFORE_S ago on; some of them may come twice."""

    def __init__(self, call: str | None) -> None:
        self.call = call
        self._most = WAITING if call is not None else WAITING_ALL
        self._queue: asyncio.Queue[Envelope | None] = asyncio.Queue(self._most + 1)
        self._cut_off = False

    def put(self, envelope: Envelope) -> None:
        if self._cut_off or (self.call is not None and envelope.call != self.call):
            return
        if self._queue.qsize() >= self._most:
            self._cut_off = True
            self._queue.put_nowait(None)
            return
        self._queue.put_nowait(envelope)

    async def next(self) -> Envelope:
        """Raises TooSlow."""
        envelope = await self._queue.get()
        if envelope is None:
            raise TooSlow("more events came than were taken")
        return envelope


class LiveEvents:
    """All on one loop."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watchers: dict[int, set[Watcher]] = {}
        self._readers: dict[int, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def watch(self, call: str | None = None) -> AsyncIterator[Watcher]:
        """A watcher of this call, or of all, while within."""
        watcher = Watcher(call)
        partitions = range(PARTITIONS) if call is None else (partition_of(call),)
        try:
            for partition in partitions:
                await self._add(partition, watcher)
            yield watcher
        finally:
            for partition in partitions:
                self._remove(partition, watcher)

    async def _add(self, partition: int, watcher: Watcher) -> None:
        there = self._watchers.setdefault(partition, set())
        there.add(watcher)
        if len(there) == 1:
            self._readers[partition] = asyncio.create_task(self._read(partition))
        elif partition in self._readers:
            await self._catch_up(partition, watcher)

    def _remove(self, partition: int, watcher: Watcher) -> None:
        there = self._watchers.get(partition, set())
        there.discard(watcher)
        if not there and (reader := self._readers.pop(partition, None)) is not None:
            reader.cancel()

    async def close(self) -> None:
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)

    async def _catch_up(self, partition: int, watcher: Watcher) -> None:
        """What was read for others before this one came."""
        with contextlib.suppress(RedisError, OSError):
            entries: Any = await self._redis.xrange(stream_key(partition), min=_since(BEFORE_S), count=WAITING // 2)
            for _, fields in entries or ():
                _hand(fields, (watcher,))

    async def _read(self, partition: int) -> None:
        last, pause = _since(BEFORE_S), Pause()
        while True:
            try:
                found: Any = await self._redis.xread({stream_key(partition): last}, count=READ_AT_ONCE,
                                                     block=round(1000 * BLOCK_S))
            except (RedisError, OSError) as error:
                log.warning("live events wait: Redis: %s", error)
                await asyncio.sleep(pause.next_s())
                continue
            pause.reset()
            for _, entries in found or ():
                for id, fields in entries:
                    last = id
                    _hand(fields, tuple(self._watchers.get(partition, ())))


def _since(seconds: float) -> str:
    return f"{max(0, round(1000 * (time.time() - seconds)))}-0"


def _hand(fields: Any, watchers: tuple[Watcher, ...]) -> None:
    try:
        envelope = decode(fields[b"event"] if b"event" in fields else fields["event"].encode())
    except (BadEvent, KeyError):
        return
    for watcher in watchers:
        watcher.put(envelope)
