"""Calls that run, as they are heard: a process's view of the event streams, for many who watch.

    bridges ──▶ 16 streams ──▶ LiveEvents: one reader for each stream that somebody watches ──▶ Watchers' queues
            ──▶ monologues ──▶

Nothing is acknowledged here; the persister does that. A watcher that doesn't keep up misses monologues; then it is cut
off, and may begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.connect import as_text
from calls.events import BadEvent, Envelope, decode
from calls.live import PARTITIONS, Pause, partition_of, stream_key
from calls.monologues import MARKED_EVERY_S, STREAM, Batch, batch_of, mark_watched

log = logging.getLogger(__name__)

BEFORE_S = 5.0  # of what happened just before somebody began to watch: not all of it may be in Postgres yet
WAITING = 512  # events that a watcher of a call may be behind
WAITING_ALL = 4096  # and one of all calls
BLOCK_S = 1.0
READ_AT_ONCE = 200


class TooSlow(Exception):
    """This watcher was more events behind than may wait for it."""


class Watcher:
    """Events of one call, or of all, and what agents write, from BEFORE_S ago on; some of them may come twice."""

    def __init__(self, call: str | None) -> None:
        self.call = call
        self._most = WAITING if call is not None else WAITING_ALL
        self._queue: asyncio.Queue[Envelope | Batch | None] = asyncio.Queue(self._most + 1)
        self._cut_off = False

    def put(self, envelope: Envelope) -> None:
        if self._cut_off or (self.call is not None and envelope.call != self.call):
            return
        if self._queue.qsize() >= self._most:
            self._cut_off = True
            self._queue.put_nowait(None)
            return
        self._queue.put_nowait(envelope)

    def put_written(self, batch: Batch) -> None:
        if self._cut_off or (self.call is not None and self.call not in batch.calls):
            return
        if self._queue.qsize() < self._most // 2:
            self._queue.put_nowait(batch if self.call is None else batch.of(self.call))

    async def next(self) -> Envelope | Batch:
        """Raises TooSlow."""
        came = await self._queue.get()
        if came is None:
            raise TooSlow("more events came than were taken")
        return came


class LiveEvents:
    """All on one loop."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watchers: dict[str, set[Watcher]] = {}  # by their stream, as the readers
        self._readers: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def watch(self, call: str | None = None, *, monologue: bool = False) -> AsyncIterator[Watcher]:
        """A watcher of this call, or of all, while within; with `monologue` also of what agents write."""
        watcher = Watcher(call)
        streams = [stream_key(at) for at in (range(PARTITIONS) if call is None else (partition_of(call),))]
        if monologue:
            streams.append(STREAM)
        try:
            for stream in streams:
                await self._add(stream, watcher)
            yield watcher
        finally:
            for stream in streams:
                self._remove(stream, watcher)

    async def _add(self, stream: str, watcher: Watcher) -> None:
        there = self._watchers.setdefault(stream, set())
        there.add(watcher)
        if len(there) == 1:
            self._readers[stream] = asyncio.create_task(self._read(stream))
        elif stream in self._readers:
            await self._catch_up(stream, watcher)

    def _remove(self, stream: str, watcher: Watcher) -> None:
        there = self._watchers.get(stream, set())
        there.discard(watcher)
        if not there and (reader := self._readers.pop(stream, None)) is not None:
            reader.cancel()

    async def close(self) -> None:
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)

    async def _catch_up(self, stream: str, watcher: Watcher) -> None:
        """What was read for others before this one came."""
        with contextlib.suppress(RedisError, OSError):
            entries: Any = await self._redis.xrange(stream, min=_since(BEFORE_S), count=WAITING // 2)
            for id, fields in entries or ():
                _hand(stream, id, fields, (watcher,))

    async def _read(self, stream: str) -> None:
        last, pause, marked_at = _since(BEFORE_S), Pause(), -math.inf
        while True:
            try:
                if stream == STREAM and time.monotonic() - marked_at >= MARKED_EVERY_S:
                    await mark_watched(self._redis)
                    marked_at = time.monotonic()
                found: Any = await self._redis.xread({stream: last}, count=READ_AT_ONCE, block=round(1000 * BLOCK_S))
            except (RedisError, OSError) as error:
                log.warning("live events wait: Redis: %s", error)
                await asyncio.sleep(pause.next_s())
                continue
            pause.reset()
            for _, entries in found or ():
                for id, fields in entries:
                    last = id
                    _hand(stream, id, fields, tuple(self._watchers.get(stream, ())))


def _since(seconds: float) -> str:
    return f"{max(0, round(1000 * (time.time() - seconds)))}-0"


def _hand(stream: str, id: Any, fields: Any, watchers: tuple[Watcher, ...]) -> None:
    if stream == STREAM:
        if (batch := batch_of(as_text(id), fields)) is not None:
            for watcher in watchers:
                watcher.put_written(batch)
        return
    try:
        envelope = decode(fields[b"event"] if b"event" in fields else fields["event"].encode())
    except (BadEvent, KeyError):
        return
    for watcher in watchers:
        watcher.put(envelope)
