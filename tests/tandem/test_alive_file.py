"""The file by which a probe sees that a role isn't stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from web_bench import role

from tandem import roles


async def _younger(path: Path, than: float) -> None:
    async with asyncio.timeout(20):
        while not path.exists() or path.stat().st_mtime <= than:
            await asyncio.sleep(0.05)


async def test_a_role_renews_its_file_and_one_that_is_frozen_doesnt(
        redis: Redis, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "alive"
    async with role(redis, redis_url, tmp_path, alive_file=file) as process:
        await _younger(file, 0.0)
        await _younger(file, file.stat().st_mtime)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            frozen_at = file.stat().st_mtime
            await asyncio.sleep(roles.ALIVE_S + 1)
            assert file.stat().st_mtime == frozen_at
        finally:
            os.kill(process.pid, signal.SIGCONT)
        await _younger(file, frozen_at)


async def test_of_two_processes_each_has_its_own(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "alive"
    async with role(redis, redis_url, tmp_path, 2, alive_file=file):
        for own in (f"{file}.0", f"{file}.1"):
            await _younger(Path(own), time.time() - 60)
        assert not file.exists()


async def test_a_file_that_cant_be_written_stops_the_role_with_one_line(
        redis: Redis, redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"tandem: TANDEM_ALIVE_FILE: .*No such file"):
        async with role(redis, redis_url, tmp_path, alive_file=tmp_path / "nowhere" / "alive"):
            pass
