"""Events written and saved, as a bridge and a persister do it, in the tests' own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from redis.asyncio import Redis

from calls import persist
from calls.events import CallEnded, CallReceived, EndReason
from calls.live import EventWriter
from calls.settings import Settings

RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "bridge 1", "agent")
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 500, 0, 0, 0)


@asynccontextmanager
async def writing(redis: Redis, source: str = "bridge") -> AsyncIterator[EventWriter]:
    writer = EventWriter(redis, source, kept_events=10_000, poll_s=0.01)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def persisting(settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(persist.run(settings, stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], bool], what: str) -> None:
    async def asked() -> bool:
        return condition()

    await until_asked(asked, what)


async def until_asked(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(45):
            while not await condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {what}")
