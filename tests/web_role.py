"""The web role's application on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import uvicorn
from call_peers import free_port

from admin.app import create_app
from calls.connect import open_redis
from calls.settings import Settings
from calls.store import Store

SECRET = b"s" * 32
NO_DATABASE = "postgresql://127.0.0.1:1/nobody"


@contextlib.asynccontextmanager
async def serving(redis_url: str, database_url: str = NO_DATABASE, *, proxies: str = "", **settings: object
                  ) -> AsyncIterator[int]:
    port = free_port()
    app = create_app(open_redis(redis_url), Settings(web_port=port, **settings), SECRET, Store(database_url))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, proxy_headers=bool(proxies),
                                           forwarded_allow_ips=proxies))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await running
