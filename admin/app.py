"""The web role's HTTP application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from redis.asyncio import Redis

from calls.routing import RoutingUnavailable, health


def create_app(redis: Redis) -> FastAPI:
    """The application over a Redis client, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    app = FastAPI(title="Tandem", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 when a bridge and a worker with a slot are alive, else 503; the body says what there is."""
        try:
            found = await health(redis)
        except RoutingUnavailable:
            return JSONResponse({"status": "no redis"}, status_code=503)
        slots = {model: sum(worker.models[model][0] for worker in found.workers if model in worker.models)
                 for worker in found.workers for model in worker.models}
        body: dict[str, Any] = {"bridges": len(found.bridges), "workers": len(found.workers), "slots": slots}
        missing = [name for name, there in (("bridge", found.bridges), ("worker", any(slots.values()))) if not there]
        body["status"] = f"no {' and no '.join(missing)}" if missing else "ok"
        return JSONResponse(body, status_code=503 if missing else 200)

    return app
