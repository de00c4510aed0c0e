"""The persister: events from Redis into Postgres, at least once, with the effect of once.

A batch is read, written in one transaction, its watermarks published, and only then acknowledged; a persister
that dies in between leaves the batch to another one. While Postgres or Redis is away the batch is held and
tried again. An event that can't be read, or that Postgres refuses, is set aside into a dead-letter stream and
counts as saved, so that it holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from calls.connect import open_redis
from calls.events import BadEvent, Envelope, Series, decode
from calls.live import Entry, EventReader, Pause, floors_of
from calls.settings import PREFIX, Settings, SettingsError
from calls.store import DatabaseAway, Refused, Store, StoreError, upgrade

RETRY_LONGEST_S = 2.0  # between two tries while Postgres or Redis is away
READ_S = 0.5  # after which a persister that finds nothing looks whether it shall stop

log = logging.getLogger(__name__)


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Saves events until `stop`, then what is left in Redis, for at most `drain_s`. Brings the database to
    its newest version first. Raises SettingsError where a URL isn't set."""
    if settings.redis_url is None or settings.database_url is None:
        name = "redis_url" if settings.redis_url is None else "database_url"
        raise SettingsError(f"{PREFIX}{name.upper()}: persist needs it")
    database_url = settings.database_url.get_secret_value()
    store = Store(database_url)
    consumer = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    async with open_redis(settings.redis_url.get_secret_value()) as redis:
        reader = EventReader(redis, consumer, claim_idle_s=settings.expiry_s)
        try:
            if await _upgrade(database_url, stop):
                await _save_until(reader, store, stop, settings.drain_s)
        finally:
            await store.close()
            await _leave(reader)


async def _upgrade(url: str, stop: asyncio.Event) -> bool:
    """Whether the database is at its newest version, waited for until `stop`."""
    pause = Pause()
    while not stop.is_set():
        try:
            await asyncio.to_thread(upgrade, url)
            return True
        except StoreError as error:
            log.warning("waiting for the database: %s", error)
        await _wait(stop, pause.next_s())
    return False


async def _save_until(reader: EventReader, store: Store, stop: asyncio.Event, drain_s: float) -> None:
    held: list[Entry] = []
    pause = Pause(longest_s=RETRY_LONGEST_S)
    deadline: float | None = None
    failing = False
    while True:
        if stop.is_set():
            deadline = deadline or time.monotonic() + drain_s
            if time.monotonic() > deadline:
                log.warning("stopped with events unsaved; they stay in Redis for the next persister")
                return
        try:
            held = held or await reader.read(0.0 if stop.is_set() else READ_S)
            if not held and stop.is_set():
                return
            if held:
                await save(reader, store, held)
                held = []
            if failing:
                log.info("events are saved again")
            failing = False
            pause.reset()
        except (DatabaseAway, RedisError, OSError) as error:
            if not failing:
                log.warning("events wait: %s", error)
            failing = True
            await (asyncio.sleep(pause.next_s()) if stop.is_set() else _wait(stop, pause.next_s()))


async def save(reader: EventReader, store: Store, entries: Sequence[Entry]) -> None:
    """Writes entries, publishes how far their series are saved, acknowledges them. Raises DatabaseAway or
    RedisError, and may then be repeated."""
    readable: list[tuple[Entry, Envelope]] = []
    bad: list[tuple[Entry, str]] = []
    for entry in entries:
        try:
            readable.append((entry, _envelope(entry)))
        except BadEvent as error:
            bad.append((entry, str(error)))
    floors = floors_of(entries)
    try:
        marks = await store.apply([each for _, each in readable], skipped=_skipped(bad), floors=floors)
    except Refused:
        marks, refused = await _save_one_by_one(store, readable)
        bad += refused
        marks |= await _skip(store, bad, floors)
    for entry, why in bad:
        log.error("event %s of %s is set aside: %s", entry.id, entry.series, why)
        await reader.set_aside(entry, why)
    await reader.publish(marks)
    await reader.ack(entries)


async def _save_one_by_one(store: Store, readable: Sequence[tuple[Entry, Envelope]]) -> tuple[
        dict[Series, int], list[tuple[Entry, str]]]:
    marks: dict[Series, int] = {}
    refused: list[tuple[Entry, str]] = []
    for entry, envelope in readable:
        try:
            marks |= await store.apply([envelope])
        except Refused as error:
            refused.append((entry, str(error)))
    return marks, refused


async def _skip(store: Store, bad: Sequence[tuple[Entry, str]],
                floors: dict[Series, int]) -> dict[Series, int]:
    """Counts what was set aside as saved; a series whose very key Postgres refuses has no watermark."""
    marks: dict[Series, int] = {}
    skipped: dict[Series, list[tuple[Series, int]]] = {series: [] for series in floors}
    for series, sequence in _skipped(bad):
        skipped[series].append((series, sequence))
    for series, its in skipped.items():
        try:
            marks |= await store.apply([], skipped=its, floors={series: floors[series]})
        except Refused as error:
            log.error("series %s has no watermark: %s", series, error)
    return marks


def _skipped(bad: Sequence[tuple[Entry, str]]) -> list[tuple[Series, int]]:
    return [(entry.series, entry.sequence) for entry, _ in bad if entry.series is not None]


def _envelope(entry: Entry) -> Envelope:
    envelope = decode(entry.data)
    if (envelope.series, envelope.sequence) != (entry.series, entry.sequence):
        raise BadEvent("its key isn't the one it was sent under")
    return envelope


async def _leave(reader: EventReader) -> None:
    try:
        await reader.close()
    except (RedisError, OSError) as error:
        log.warning("the persister couldn't leave its group: %s", error)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
