"""What fifty open dashboards cost: the web role as it is started, ten calls whose words come as people speak, and what
their agents write in each frame.

The calls are events as bridges emit them, without sound. Measured: the web process's time on a core, how long a word is
under way to a dashboard, and how long events take to Redis, which is all of it that a call's bridge could notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import psutil
from redis.asyncio import Redis

from calls.connect import open_redis
from calls.controls import ControlInbox
from calls.events import CallAnswered, CallReceived, Envelope, Speaker, UtteranceSpoken, Word
from calls.follow import LiveEvents
from calls.live import EventWriter
from calls.monologues import KEPT, MonologueTeller, Told, Written
from calls.operators import Operators, Role
from calls.store import Store, upgrade
from media.audio import FRAME_S
from tandem.embedded import embedded_postgres, embedded_redis

CALLS, DASHBOARDS = 10, 50
WORDS_A_SECOND, WORDS = 2.5, 12  # of a call; of an utterance
MEASURED_S, SETTLES_S, STARTS_S = 30.0, 5.0, 120.0
AGAIN_S, BEATS_S = 1.0, 1.0
BRIDGE = "bench"


@dataclass
class Watched:
    """Seconds that words took."""

    to_dashboards: list[float] = field(default_factory=list)
    to_redis: list[float] = field(default_factory=list)
    began_anew: int = 0  # streams, as browsers do
    written: int = 0  # frames of which dashboards were told what the model wrote


def run() -> list[str]:
    return asyncio.run(_run())


async def _run() -> list[str]:
    with tempfile.TemporaryDirectory() as folder, embedded_redis(Path(folder)) as redis_url, \
            embedded_postgres(Path(folder), durable=False) as database_url:
        upgrade(database_url)
        store = Store(database_url)
        try:
            async with open_redis(redis_url) as redis, _web(redis_url, database_url, Path(folder)) as (web, port):
                writer = EventWriter(redis, BRIDGE, kept_events=1_000_000)
                sending = asyncio.create_task(writer.run())
                try:
                    return await _measured(redis, store, writer, web, port)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        finally:
            await store.close()


async def _measured(redis: Redis, store: Store, writer: EventWriter, web: psutil.Process, port: int) -> list[str]:
    calls = [f"call-{number}" for number in range(CALLS)]
    for call in calls:
        begun = (CallReceived("sip", "inbound", f"sip:{call}@example.org", "sip:agent@here", call, BRIDGE, "agent"),
                 CallAnswered("PCMU"))
        await store.apply([writer.emit(call, 0, event) for event in begun])
    await ControlInbox(redis, BRIDGE).here(calls, 600)
    operators, watched, live = Operators(store), Watched(), LiveEvents(redis)
    ann = await operators.make("ann", "correct horse battery", Role.OPERATOR)
    tokens = [await operators.sign_in(ann) for _ in range(DASHBOARDS)]
    tasks = [asyncio.create_task(_speak(writer, call)) for call in calls]
    tasks += [asyncio.create_task(_read(live, watched)), asyncio.create_task(_write(redis, calls))]
    rows = []
    try:
        for open_now in (0, DASHBOARDS):
            tasks += [asyncio.create_task(_watch(port, token, watched)) for token in tokens[:open_now]]
            await asyncio.sleep(SETTLES_S)
            watched.to_dashboards.clear()
            watched.to_redis.clear()
            watched.written = 0
            before, began = sum(web.cpu_times()[:2]), time.monotonic()
            await asyncio.sleep(MEASURED_S)
            used = (sum(web.cpu_times()[:2]) - before) / (time.monotonic() - began)
            if failed := [task for task in tasks if task.done()]:
                failed[0].result()
            rows.append(f"| {open_now} | {used:.2f} | {web.memory_info().rss / 1e6:.0f} MB "
                        f"| {len(watched.to_dashboards) / MEASURED_S:.0f} "
                        f"| {watched.written / MEASURED_S:.0f} | {_ms(watched.to_dashboards)} "
                        f"| {_ms(watched.to_redis)} |")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await live.close()
    return [
        f"{CALLS} calls, {WORDS_A_SECOND:g} words a second in each; {MEASURED_S:.0f} s. The dashboards' other ends, "
        "the calls, Redis and Postgres ran on the same cores"
        f" (load average {os.getloadavg()[0]:.1f}). Events dropped: {writer.dropped}. Streams that ended and "
        f"began anew: {watched.began_anew}.", "",
        "| dashboards | web process, cores | its memory | words/s | written frames/s "
        "| a word to a dashboard, ms p50 / p99 | an event to Redis and back, ms p50 / p99 |",
        "|---|---|---|---|---|---|---|", *rows]


async def _speak(writer: EventWriter, call: str) -> None:
    """Words, each of which tells when it was said, in utterances that grow."""
    for number in count():
        words: list[Word] = []
        for at in range(WORDS):
            k = 100 * number + at
            words.append(Word(f"{time.time():.6f}", k, k, 0.08 * k, 0.08 * (k + 1)))
            writer.emit(call, 1, UtteranceSpoken(Speaker.AGENT if number % 2 else Speaker.CALLER, 100 * number, k,
                                                 tuple(words), final=at == WORDS - 1))
            await asyncio.sleep(1 / WORDS_A_SECOND)


async def _write(redis: Redis, calls: list[str]) -> None:
    """What their agents write, as one bridge tells it."""
    teller, told_k = MonologueTeller(redis), 0
    began = time.monotonic()

    def take() -> Told:
        nonlocal told_k
        first_k, told_k = told_k, int((time.monotonic() - began) / FRAME_S)
        return {call: tuple(Written(k, "piece", "\u2581hello", "forced", False, "pad", "")
                            for k in range(max(first_k, told_k - KEPT), told_k)) for call in calls}

    telling = asyncio.create_task(teller.run(take))
    try:
        while True:
            await teller.look()
            await asyncio.sleep(BEATS_S)
    finally:
        telling.cancel()


def _said_ago(text: str) -> float:
    return time.time() - float(text.rsplit(" ", 1)[-1])


async def _read(live: LiveEvents, watched: Watched) -> None:
    async with live.watch() as watcher:
        while True:
            came = await watcher.next()
            if isinstance(came, Envelope) and isinstance(came.event, UtteranceSpoken):
                watched.to_redis.append(_said_ago(came.event.text))


async def _watch(port: int, token: str, watched: Watched) -> None:
    """A dashboard: its stream, which begins anew when it ends."""
    while True:
        with contextlib.suppress(OSError):
            await _stream(port, token, watched)
        watched.began_anew += 1
        await asyncio.sleep(AGAIN_S)


async def _stream(port: int, token: str, watched: Watched) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        asked = ("GET /admin/events HTTP/1.1", "Host: localhost", f"Cookie: tandem_session={token}", "", "")
        writer.write("\r\n".join(asked).encode())
        if (status := await reader.readline()).split()[1:2] != [b"200"]:
            raise ConnectionError(f"a dashboard's stream isn't there: {status.decode()}")
        while line := await reader.readline():
            message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if message.get("type") == "utterance":
                watched.to_dashboards.append(_said_ago(message["text"]))
            watched.written += len(message.get("frames", ()))
    finally:
        writer.close()


@asynccontextmanager
async def _web(redis_url: str, database_url: str, folder: Path) -> AsyncIterator[tuple[psutil.Process, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"redis_url": redis_url, "database_url": database_url, "secret": "s" * 32, "web_port": port,
             "data_dir": folder}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem", "web", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **{f"TANDEM_{name.upper()}": str(value) for name, value in given.items()}})
    try:
        async with asyncio.timeout(STARTS_S):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        await process.wait()


def _ms(seconds: list[float]) -> str:
    return " / ".join(f"{1000 * value:.0f}" for value in np.percentile(seconds, (50, 99))) if seconds else "–"
