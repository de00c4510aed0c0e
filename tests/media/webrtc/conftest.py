from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from call_peers import speech
from redis.asyncio import Redis
from web_bench import WebBench, running
from web_peer import RATE, on_loopback


@pytest.fixture
async def bench(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WebBench]:
    on_loopback(monkeypatch)
    async with running(redis, redis_url, tmp_path) as bench:
        yield bench


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """4 s of speech at 48 kHz, int16."""
    folder = tmp_path_factory.mktemp("speech")
    said = speech(folder / "hello.wav", "Hello, six sixty seven. This is a rather long test of the line.", 4.0)
    subprocess.run(["sox", str(said), "-r", str(RATE), "-b", "16", "-c", "1", str(folder / "48.raw")], check=True)
    return np.fromfile(folder / "48.raw", np.int16)
