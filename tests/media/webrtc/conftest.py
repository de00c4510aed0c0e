from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from web_bench import WebBench, running
from web_peer import on_loopback


@pytest.fixture
async def bench(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WebBench]:
    on_loopback(monkeypatch)
    async with running(redis, redis_url, tmp_path) as bench:
        yield bench
