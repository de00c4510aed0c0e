"""What a lease costs while many workers beat: by the taker's clock, and in Redis itself.

Simulated workers (bench/simulated.py) give a sign of life a second each from a process of their own. One bridge takes
and gives back leases, a hundred a second; then as fast as it can, with 50 at once.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis

from bench.simulated import MODEL, SECRET, fleet
from calls.connect import open_redis
from calls.routing import Router
from tandem.embedded import embedded_redis

WORKERS = (10, 100, 1000, 2000)
LEASES, APART_S = 2000, 0.01
AT_ONCE, FAST_S = 50, 5.0


def run() -> list[str]:
    rows = ["| workers | a lease, p50 ms | p95 | **p99** | leases a second, 50 at once | µs in Redis for a lease and "
            "its end | Redis's processor |", "|---|---|---|---|---|---|---|"]
    for workers in WORKERS:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name)) as url:
            with fleet(url, workers=workers):
                times, busy = asyncio.run(_paced(url))
                fast = asyncio.run(_fast(url))
            in_redis_us = asyncio.run(_in_redis(url))
        p50, p95, p99 = np.percentile(1000 * np.array(times), (50, 95, 99))
        rows.append(f"| {workers} | {p50:.2f} | {p95:.2f} | **{p99:.2f}** | {fast:.0f} | {in_redis_us:.0f} | "
                    f"{100 * busy:.0f} % |")
    return [*rows, "", f"{LEASES} leases each. At most 2 ms (p99) is wanted at 1,000 workers."]


async def _paced(url: str) -> tuple[list[float], float]:
    """How long each took, and Redis's share of a core meanwhile."""
    times: list[float] = []
    async with open_redis(url) as redis:
        router = Router(redis, SECRET, lease_s=6)
        before, began = await cpu_s(redis), time.monotonic()
        for number in range(LEASES):
            at = time.perf_counter()
            lease = await router.acquire(f"call {number}", MODEL)
            times.append(time.perf_counter() - at)
            await router.release(lease)
            await asyncio.sleep(max(0.0, APART_S - (time.perf_counter() - at)))
        return times, (await cpu_s(redis) - before) / (time.monotonic() - began)


async def _fast(url: str) -> float:
    """Leases a second that one process takes and gives back."""
    async with open_redis(url) as redis:
        router, taken, ends_at = Router(redis, SECRET, lease_s=6, wait_s=30), 0, time.monotonic() + FAST_S

        async def take(number: int) -> None:
            nonlocal taken
            while time.monotonic() < ends_at:
                await router.release(await router.acquire(f"fast {number}", MODEL))
                taken += 1

        await asyncio.gather(*(take(number) for number in range(AT_ONCE)))
        return taken / FAST_S


async def _in_redis(url: str) -> float:
    """Microseconds of Redis's own for a lease and its end; nothing else happens, the workers still count as alive."""
    async with open_redis(url) as redis:
        router = Router(redis, SECRET, lease_s=6)
        await redis.config_resetstat()
        for number in range(LEASES):
            await router.release(await router.acquire(f"alone {number}", MODEL))
        scripts: Any = (await redis.info("commandstats"))["cmdstat_evalsha"]
        return float(scripts["usec"]) / LEASES


async def cpu_s(redis: Redis) -> float:
    """Processor time that Redis has used."""
    used: Any = await redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
