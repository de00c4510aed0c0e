from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from call_peers import free_port
from redis.asyncio import Redis

from admin.app import create_app
from calls.connect import open_redis
from calls.routing import BridgeRegistry, Heartbeat, WorkerRegistry
from calls.settings import Settings
from calls.store import Store

NO_STORE = Store("postgresql://127.0.0.1:1/nobody")


async def _get(port: int, path: str) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    return await asyncio.to_thread(ask)


async def _serving(redis: Redis) -> AsyncIterator[int]:
    port = free_port()
    app = create_app(redis, Settings(), b"s" * 32, NO_STORE)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await running


@pytest.fixture
async def port(redis: Redis, redis_url: str) -> AsyncIterator[int]:
    async for port in _serving(open_redis(redis_url)):
        yield port


async def test_health_names_what_is_missing_until_a_bridge_and_a_worker_live(port: int, redis: Redis) -> None:
    assert await _get(port, "/healthz") == (503, {
        "status": "no bridge and no worker", "bridges": 0, "workers": 0, "models": {}})
    await BridgeRegistry(redis, expiry_s=60).beat("b", "sip", 1, 4)
    assert (await _get(port, "/healthz"))[1]["status"] == "no worker"
    workers = WorkerRegistry(redis, expiry_s=60)
    for name in ("w1", "w2"):
        beat = Heartbeat(name, "e", "ws://127.0.0.1:1", {"moshi": (4, 1), "echo": (2, 0)}, draining=False)
        await workers.beat(beat)
    assert await _get(port, "/healthz") == (200, {
        "status": "ok", "bridges": 1, "workers": 2,
        "models": {"moshi": {"slots": 8, "used": 2}, "echo": {"slots": 4, "used": 0}}})


async def test_health_says_when_redis_is_away() -> None:
    async for port in _serving(open_redis(f"redis://127.0.0.1:{free_port()}")):
        assert await _get(port, "/healthz") == (503, {"status": "no redis"})


async def test_nothing_else_is_open(port: int) -> None:
    for path in ("/docs", "/openapi.json", "/redoc", "/metrics"):
        assert (await _get(port, path))[0] == 404
