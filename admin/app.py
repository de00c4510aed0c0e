"""The web role's HTTP application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from redis.asyncio import Redis

from admin import metrics, web_files
from admin.access import Access
from admin.accounts import Accounts
from admin.api import Api
from admin.configuring import Configuring
from admin.dashboard import Dashboard
from admin.dashboard_access import AccessPages
from admin.dashboard_configuration import ConfigurationPages
from admin.dashboard_webhooks import WebhookPages
from admin.errors import answer_errors
from admin.listening import Listening
from admin.retaining import Retaining
from admin.service import Service
from admin.sign_in import SignIn
from admin.telephoning import Telephoning
from admin.web_calls import WebCalls
from admin.webhooking import Webhooking
from calls.configuration import Follower
from calls.routing import RoutingUnavailable, health
from calls.settings import Settings
from calls.store import Store

LAST_S = 3.0  # at the end, for what runs beside the requests


def create_app(redis: Redis, settings: Settings, secret: bytes, store: Store) -> FastAPI:
    """The application over a Redis client and a store, which it closes at its end; `secret` signs what browsers are
    given."""
    accounts = Accounts(redis, store, secret)
    service, access = Service(redis, store), Access(redis, store, accounts)
    configuring, configuration = Configuring(redis, store, settings), Follower(redis, settings)
    telephoning, retaining = Telephoning(redis, store, secret), Retaining(store)
    webhooking = Webhooking(store, secret, settings.networks_of_webhooks)
    sign_in, listening = SignIn(access, secret), Listening(redis, store, settings, secret)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        beside = [asyncio.create_task(work)
                  for work in (configuring.run(), configuration.run(), telephoning.run(), webhooking.run())]
        yield
        for task in beside:
            task.cancel()
        await asyncio.wait(beside, timeout=LAST_S)
        await service.close()
        await store.close()
        await redis.aclose()

    app = FastAPI(title="Tandem", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    answer_errors(app, sign_in)
    api = Api(service, access)
    app.include_router(api.router(configuring, telephoning, webhooking, retaining))
    app.include_router(api.document(app.routes))
    app.include_router(sign_in.router())
    app.include_router(AccessPages(service, accounts, sign_in).router())
    app.include_router(ConfigurationPages(configuring, telephoning, retaining, sign_in).router())
    app.include_router(WebhookPages(webhooking, sign_in).router())
    app.include_router(Dashboard(service, access, sign_in, listening, settings).router())
    app.include_router(WebCalls(settings, redis, secret, configuration).router())
    app.include_router(web_files.router())

    if settings.metrics_token is not None:
        app.include_router(metrics.router(redis, store, settings.metrics_token.get_secret_value()))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 when a bridge and a worker with a slot are alive, else 503; the body says what there is."""
        try:
            found = await health(redis)
        except RoutingUnavailable:
            return JSONResponse({"status": "no redis"}, status_code=503)
        models: dict[str, dict[str, int]] = {}
        for worker in found.workers:
            for model, (slots, used) in worker.models.items():
                total = models.setdefault(model, {"slots": 0, "used": 0})
                total["slots"] += slots
                total["used"] += used
        there = {"bridge": bool(found.bridges), "worker": any(total["slots"] for total in models.values())}
        missing = [f"no {name}" for name, alive in there.items() if not alive]
        body = {"status": " and ".join(missing) or "ok", "bridges": len(found.bridges),
                "workers": len(found.workers), "models": models}
        return JSONResponse(body, status_code=503 if missing else 200)

    return app
