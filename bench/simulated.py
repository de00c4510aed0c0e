"""Workers, bridges and calls as Redis sees them, by the code that real ones run, without any sound.

`python -m bench.simulated URL WORKERS BRIDGES CALLS SECONDS`: a process of them; CALLS are spread over the bridges, and
are leased, renewed and talked in: an utterance grows by a word about twice a second, as in a call with nano.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

from redis.asyncio import Redis

from calls import draining
from calls.configuration import Follower
from calls.connect import open_redis
from calls.controls import ControlInbox
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallReceived,
    EndReason,
    Measure,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.live import EventWriter
from calls.routing import BridgeRegistry, Heartbeat, Lease, Refusal, Router, WorkerRegistry
from calls.settings import Settings

MODEL, SLOTS = "nano", 32
SECRET = b"thirty-two bytes or more of secret"
WORD_S, UTTERANCE_WORDS, MEASURED_S = 0.5, 10, 10.0
EACH = 100  # workers that one task is
READY = "ready"


async def workers_beat(redis: Redis, numbers: range, settings: Settings) -> None:
    """One after the other, each of them once in `heartbeat_s`."""
    registry, loop = WorkerRegistry(redis, expiry_s=60, wait_s=30), asyncio.get_running_loop()
    due = loop.time()
    while True:
        for number in numbers:
            sign = Heartbeat(f"worker-{number}", "e", f"ws://10.0.0.1:{number}", {MODEL: (SLOTS, 0)}, draining=False)
            await registry.beat(sign)
            await draining.ordered(redis, sign.worker)
            due += settings.heartbeat_s / len(numbers)
            await asyncio.sleep(max(0.0, due - loop.time()))


async def bridge(url: str, number: int, calls: int, settings: Settings) -> None:
    """With a client of its own, as a process has."""
    name = f"bridge-{number}-{uuid4().hex[:8]}"
    async with open_redis(url) as redis, asyncio.TaskGroup() as tasks:
        events = EventWriter(redis, name, kept_events=settings.kept_events)
        controls = ControlInbox(redis, name)
        tasks.create_task(events.run())
        tasks.create_task(Follower(redis, settings).run())
        tasks.create_task(_controls(controls))
        ids = [uuid4().hex for _ in range(calls)]
        tasks.create_task(_beats(redis, controls, name, ids, settings))
        router = Router(redis, SECRET, lease_s=settings.lease_s, wait_s=30)
        for id in ids:
            tasks.create_task(_call(id, name, router, events, settings))


async def _controls(inbox: ControlInbox) -> None:
    while True:
        await inbox.next()


async def _beats(redis: Redis, controls: ControlInbox, name: str, ids: list[str], settings: Settings) -> None:
    registry = BridgeRegistry(redis, expiry_s=60, wait_s=30)
    await asyncio.sleep(random.random() * settings.heartbeat_s)
    while True:
        await registry.beat(name, "sip", len(ids), 100)
        await controls.here(ids, 60)
        await asyncio.sleep(settings.heartbeat_s)


async def _call(id: str, source: str, router: Router, events: EventWriter, settings: Settings) -> None:
    events.emit(id, 0, CallReceived("sip", "inbound", "sip:a@b", "sip:agent@b", id, source, "agent"))
    await asyncio.sleep(random.random() * 2)
    lease = await _leased(router, id)
    events.emit(id, lease.fence, CallLeased(MODEL, lease.worker, lease.epoch))
    events.emit(id, lease.fence, CallAnswered("PCMU"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_renews(router, lease, settings))
        tasks.create_task(talk(id, lease.fence, events))


async def _leased(router: Router, id: str) -> Lease:
    while True:
        with contextlib.suppress(Refusal):
            return await router.acquire(id, MODEL)
        await asyncio.sleep(0.5)


async def _renews(router: Router, lease: Lease, settings: Settings) -> None:
    while True:
        await asyncio.sleep(settings.lease_s / 3)
        lease = await router.renew(lease)


async def talk(id: str, fence: int, events: EventWriter) -> None:
    k, words, measured_at = 0, list[Word](), time.monotonic()
    while True:
        await asyncio.sleep(WORD_S * (0.5 + random.random()))
        k += 6
        words.append(Word("parking", k, k + 3, 0.08 * k, 0.08 * k + 0.2))
        final = len(words) == UTTERANCE_WORDS
        events.emit(id, fence, UtteranceSpoken(Speaker.AGENT, words[0].first_k, k + 3, tuple(words), final))
        if final:
            words = []
        if time.monotonic() - measured_at > MEASURED_S:
            measured_at = time.monotonic()
            events.emit(id, fence, CallMeasured(tuple(
                Measure(name, 100, 1.0, 0.01, 0.02, 0.03) for name in ("bridge", "link", "wait", "step", "whole"))))


def call_events(id: str) -> list[CallReceived | CallLeased | CallAnswered | UtteranceSpoken | CallEnded]:
    """A short call's, all at once."""
    words = tuple(Word("parking", 6 * at, 6 * at + 3, 0.48 * at, 0.48 * at + 0.2) for at in range(UTTERANCE_WORDS))
    grown = [UtteranceSpoken(Speaker.AGENT, 0, 6 * count, words[:count], count == UTTERANCE_WORDS)
             for count in range(1, UTTERANCE_WORDS + 1)]
    return [CallReceived("sip", "inbound", "sip:a@b", "sip:agent@b", id, "b", "agent"), CallLeased(MODEL, "w", "e"),
            CallAnswered("PCMU"), *grown, CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 0, 0, 0)]


async def _run(url: str, workers: int, bridges: int, calls: int, seconds: float) -> None:
    settings = Settings()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), open_redis(url) as redis, asyncio.TaskGroup() as tasks:
            for first in range(0, workers, EACH):
                tasks.create_task(workers_beat(redis, range(first, min(first + EACH, workers)), settings))
            await asyncio.sleep(2 * settings.heartbeat_s)
            for number in range(bridges):
                share = calls // bridges + (number < calls % bridges)
                tasks.create_task(bridge(url, number, share, settings))
            await asyncio.sleep(4)  # all are leased
            print(READY, flush=True)


@contextlib.contextmanager
def fleet(url: str, *, workers: int = 0, bridges: int = 0, calls: int = 0, seconds: float = 600) -> Iterator[None]:
    """A process of them, alive until the end."""
    command = [sys.executable, "-m", "bench.simulated", url, *map(str, (workers, bridges, calls, seconds))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise RuntimeError("the simulated fleet didn't come up")
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(_run(given[0], int(given[1]), int(given[2]), int(given[3]), float(given[4])))
