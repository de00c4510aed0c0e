"""The API's part for webhooks: where programs are told what happens in calls, and what they were told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, TypeAdapter

from admin.documents import errors, takes
from admin.messages import as_json, parsed, read_json
from admin.service import Actor
from admin.webhooking import Webhooking
from calls.store import MAX_ROWS
from calls.webhooks import Attempt, Delivery, State, Webhook, WebhookSettings


class Webhooks(BaseModel):
    """Those there are, the newest last."""

    webhooks: tuple[Webhook, ...]


class Secret(BaseModel):
    secret: str = Field(description="with which deliveries are signed; told this once")


class NewWebhook(BaseModel):
    """A webhook that was made."""

    id: str
    url: str
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_why: str
    created_at: datetime
    secret: str = Field(description="with which deliveries are signed; told this once")


class Deliveries(BaseModel):
    """A page of them, the newest first."""

    deliveries: tuple[Delivery, ...]
    next: str | None


class WholeDelivery(BaseModel):
    """What was sent, and how it was tried."""

    delivery: Delivery
    body: str
    attempts: tuple[Attempt, ...]


class DeliveryId(BaseModel):
    delivery: int


Number = Annotated[int, Path(ge=1, lt=2**63)]
_SETTINGS: TypeAdapter[WebhookSettings] = TypeAdapter(WebhookSettings)


def routes(webhooking: Webhooking, by_key: Callable[[Request], Awaitable[Actor]]) -> APIRouter:
    router, known = APIRouter(prefix="/webhooks", tags=["webhooks"]), Depends(by_key)

    async def given(request: Request) -> WebhookSettings:
        return parsed(_SETTINGS, await read_json(request))

    @router.get("", response_model=Webhooks, responses=errors())
    async def webhooks(actor: Actor = known) -> JSONResponse:
        """Without their secrets."""
        return as_json({"webhooks": [asdict(one) for one in await webhooking.webhooks(actor)]})

    @router.post("", status_code=201, response_model=NewWebhook, responses=errors(400, 413),
                 openapi_extra=takes(WebhookSettings))
    async def make(request: Request, actor: Actor = known) -> JSONResponse:
        """From now on it is told these events."""
        made, secret = await webhooking.make(actor, await given(request))
        return as_json(asdict(made) | {"secret": secret}, 201)

    @router.get("/{id}", response_model=Webhook, responses=errors(404))
    async def webhook(id: str, actor: Actor = known) -> JSONResponse:
        return as_json(asdict(await webhooking.webhook(actor, id)))

    @router.put("/{id}", response_model=Webhook, responses=errors(400, 404, 413),
                openapi_extra=takes(WebhookSettings))
    async def change(id: str, request: Request, actor: Actor = known) -> JSONResponse:
        """All of it but its secret. What waits for one that is switched off is sent when it is on again."""
        return as_json(asdict(await webhooking.change(actor, id, await given(request))))

    @router.delete("/{id}", status_code=204, response_class=Response, responses=errors(404))
    async def remove(id: str, actor: Actor = known) -> Response:
        await webhooking.remove(actor, id)
        return Response(status_code=204)

    @router.post("/{id}/secret", response_model=Secret, responses=errors(404))
    async def new_secret(id: str, actor: Actor = known) -> JSONResponse:
        """Another secret. For a day what is sent is signed with the one before, too."""
        return as_json({"secret": await webhooking.new_secret(actor, id)})

    @router.post("/{id}/test", status_code=202, response_model=DeliveryId, responses=errors(404))
    async def test(id: str, actor: Actor = known) -> JSONResponse:
        """Send it a `ping`."""
        return as_json({"delivery": await webhooking.test(actor, id)}, 202)

    @router.get("/{id}/deliveries", response_model=Deliveries, responses=errors(404))
    async def deliveries(id: str, state: State | None = None, limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50,
                         cursor: Annotated[str | None, Query(
                             max_length=400, description="`next` of the page before")] = None, actor: Actor = known
                         ) -> JSONResponse:
        """What it was told in the last 30 days, and is to be told."""
        rows, last = await webhooking.deliveries(actor, id, state, limit, cursor)
        return as_json({"deliveries": [asdict(row) for row in rows], "next": last})

    @router.get("/{id}/deliveries/{number}", response_model=WholeDelivery, responses=errors(404))
    async def delivery(id: str, number: Number, actor: Actor = known) -> JSONResponse:
        """What was sent, and how it was tried."""
        row, body, attempts = await webhooking.delivery(actor, id, number)
        told: dict[str, Any] = {"delivery": asdict(row), "body": body, "attempts": [asdict(one) for one in attempts]}
        return as_json(told)

    @router.post("/{id}/deliveries/{number}/replay", status_code=202, response_model=DeliveryId, responses=errors(404))
    async def replay(id: str, number: Number, actor: Actor = known) -> JSONResponse:
        """Send it again, with the same id."""
        await webhooking.replay(actor, id, number)
        return as_json({"delivery": number}, 202)

    return router
