"""How the work of one Redis and one Postgres grows with workers, bridges and calls.

Simulated ones (bench/simulated.py) against an own Redis, each kind by itself: what one of it costs a second. Then
events as fast as they go: into Redis from one bridge, and from there into Postgres by one persister. Real calls with
nano say how many events a call makes.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from redis.asyncio import Redis

from bench.simulated import call_events, fleet
from calls.connect import open_redis
from calls.live import PARTITIONS, EventWriter, stream_key
from calls.persist import run as persist
from calls.routing import health
from calls.settings import load_settings
from calls.store import upgrade
from sip.phone import phone
from tandem.embedded import embedded_postgres, embedded_redis, running_postgres
from tandem.own_server import serving

SECONDS = 15.0
FLEETS = {"worker": (500, 0, 0), "bridge": (0, 40, 0), "call": (40, 10, 400)}  # workers, bridges, calls
STORM_CALLS = 1500
REAL_CALLS, REAL_S = 2, 30.0


@dataclass(frozen=True)
class Load:
    """What a Redis did, a second."""

    commands: float
    cpu_s: float
    bytes_in: float
    bytes_out: float
    clients: float
    memory: float  # bytes, at the end

    def less(self, other: Load, count: int) -> Load:
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return Load(*((mine - its) / count for mine, its in both))


def run() -> list[str]:
    rows = ["| one more | commands a second | µs of Redis's processor a second | bytes in / out a second | connections "
            "| kB |", "|---|---|---|---|---|---|"]
    for name, (workers, bridges, calls) in FLEETS.items():
        of_kind, without = _fleet(workers, bridges, calls), _fleet(workers, bridges, 0) if calls else Load(*(0.0,) * 6)
        one = of_kind.less(without, calls or bridges or workers)
        rows.append(f"| {name} | {one.commands:.1f} | {1e6 * one.cpu_s:.0f} | {one.bytes_in:.0f} / {one.bytes_out:.0f} "
                    f"| {one.clients:.1f} | {one.memory / 1000:.1f} |")
    return [*rows, "", *_storm(), *_real()]


def _fleet(workers: int, bridges: int, calls: int) -> Load:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name)) as url:
        empty = asyncio.run(_seen(url))
        with fleet(url, workers=workers, bridges=bridges, calls=calls):
            time.sleep(3.0)
            load = asyncio.run(_watched(url, empty))
    return load


async def _seen(url: str) -> dict[str, float]:
    async with open_redis(url) as redis:
        return await _counted(redis)


async def _counted(redis: Redis) -> dict[str, float]:
    every: Any = await redis.info("everything")
    names = ("total_commands_processed", "total_net_input_bytes", "total_net_output_bytes", "connected_clients",
             "used_memory", "used_cpu_user", "used_cpu_sys")
    return {name: float(every[name]) for name in names} | {"at": time.monotonic()}


async def _watched(url: str, empty: dict[str, float]) -> Load:
    async with open_redis(url) as redis:
        before = await _counted(redis)
        await asyncio.sleep(SECONDS)
        after = await _counted(redis)
    took_s = after["at"] - before["at"]

    def rate(*names: str) -> float:
        return sum(after[name] - before[name] for name in names) / took_s

    return Load(rate("total_commands_processed"), rate("used_cpu_user", "used_cpu_sys"), rate("total_net_input_bytes"),
                rate("total_net_output_bytes"), after["connected_clients"] - 1,
                after["used_memory"] - empty["used_memory"])


def _storm() -> list[str]:
    with (tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name)) as redis_url,
          embedded_postgres(Path(name)) as database_url):
        upgrade(database_url)
        return asyncio.run(_storms(redis_url, database_url))


async def _storms(redis_url: str, database_url: str) -> list[str]:
    async with open_redis(redis_url) as redis:
        writer = EventWriter(redis, "bench", kept_events=1_000_000)
        events = 0
        for _ in range(STORM_CALLS):
            id = uuid4().hex
            for event in call_events(id):
                writer.emit(id, 1, event)
                events += 1
        before = await _counted(redis)
        assert not await writer.drain(300)
        after = await _counted(redis)
        appended_s = after["at"] - before["at"]
        append_us = 1e6 * sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys")) / events
        written, stop = _rows(database_url), asyncio.Event()
        settings = load_settings(redis_url=redis_url, database_url=database_url)
        saving, began = asyncio.create_task(persist(settings, stop)), time.monotonic()
        while _rows(database_url, "tandem_ended") < STORM_CALLS:
            await asyncio.sleep(0.2)
        saved_s = time.monotonic() - began
        stop.set()
        await saving
        now = _rows(database_url)
        return [f"{events} events of {STORM_CALLS} short calls, as fast as they go: one bridge puts "
                f"{events / appended_s:.0f} a second into Redis ({append_us:.0f} µs of its processor each), one "
                f"persister puts **{events / saved_s:.0f} a second** into Postgres (durable; "
                f"{(now - written) / events:.1f} rows written for each event).", ""]


def _rows(url: str, what: str = "written") -> int:
    """Rows that were written by now, or calls that have ended."""
    query = ("SELECT count(*) FROM calls WHERE ended_at IS NOT NULL" if what == "tandem_ended" else
             "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute(query).fetchone()
    return int(row[0] or 0) if row else 0


def _real() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name) / "ours") as url:
        settings = load_settings(model="nano", slots=REAL_CALLS)
        with serving(settings, Path(name), url, echo_slots=1) as ours:
            idle, rows, events = asyncio.run(_watched(url, asyncio.run(_seen(url)))), 0, 0
            database_url = running_postgres(Path(name) / "data")
            before = _rows(database_url), asyncio.run(_events(url))
            asyncio.run(_talk(ours.sip_port))
            time.sleep(3.0)
            rows, events = (now - then for now, then in
                            zip((_rows(database_url), asyncio.run(_events(url))), before, strict=True))
            alive = asyncio.run(_alive(url))
    each = REAL_CALLS * REAL_S
    return [f"{REAL_CALLS} real calls with nano of {REAL_S:.0f} s (`tandem serve`): {events / each:.2f} events and "
            f"{rows / each:.1f} rows written in Postgres a second of a call. Without calls all five roles together "
            f"({alive}) ask Redis {idle.commands:.0f} commands a second, {1e6 * idle.cpu_s:.0f} µs of its processor."]


async def _talk(port: int) -> None:
    reports = await asyncio.gather(*(phone(f"sip:agent@127.0.0.1:{port}", seconds=REAL_S) for _ in range(REAL_CALLS)))
    assert all(report.status == 200 for report in reports)


async def _events(url: str) -> int:
    """That were ever put into the streams."""
    async with open_redis(url) as redis:
        total = 0
        for number in range(PARTITIONS):
            if await redis.exists(stream_key(number)):
                stream: Any = await redis.xinfo_stream(stream_key(number))
                total += int(stream.get("entries-added", 0)) or int(stream["length"])
        return total


async def _alive(url: str) -> str:
    async with open_redis(url) as redis:
        found = await health(redis)
    return f"{len(found.bridges)} bridges, {len(found.workers)} worker"
