"""The dashboard's pages of webhooks: who is told what happens in calls, and what became of each delivery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, get_args
from urllib.parse import quote

from fastapi import APIRouter, Path, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import TypeAdapter

from admin.messages import Form, parsed
from admin.service import NotAllowed
from admin.sign_in import SignIn, Visitor
from admin.webhooking import Webhooking
from calls.webhooks import EventType, State, WebhookSettings

ROWS = 50  # of a page
WEBHOOKS = "/admin/webhooks"
STATES: tuple[State, ...] = get_args(State)
Number = Annotated[int, Path(ge=1, lt=2**63)]
_SETTINGS: TypeAdapter[WebhookSettings] = TypeAdapter(WebhookSettings)


class WebhookPages:
    """The routes' work."""

    def __init__(self, webhooking: Webhooking, sign_in: SignIn) -> None:
        self._webhooking, self._sign_in = webhooking, sign_in

    def router(self) -> APIRouter:
        router = APIRouter(prefix=WEBHOOKS)
        answer: Callable[..., Awaitable[Response]]
        for path, answer in (("", self._all), ("/{id}", self._one), ("/{id}/deliveries/{number}", self._delivery)):
            router.add_api_route(path, answer, methods=["GET"], response_class=Response)
        for path, answer in (
                ("", self._make), ("/{id}", self._change), ("/{id}/secret", self._new_secret),
                ("/{id}/test", self._test), ("/{id}/remove", self._remove),
                ("/{id}/deliveries/{number}/replay", self._replay)):
            router.add_api_route(path, answer, methods=["POST"], response_class=Response)
        return router

    async def _all(self, request: Request) -> Response:
        return await self._all_page(await self._sign_in.visitor(request))

    async def _all_page(self, visitor: Visitor, refused: NotAllowed | None = None, url: str = "") -> Response:
        return visitor.page("webhooks.html", "Webhooks", refused=refused, types=tuple(EventType), url=url,
                            webhooks=await self._webhooking.webhooks(visitor.actor))

    async def _make(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            made, secret = await self._webhooking.make(visitor.actor, _settings(form, enabled=True))
        except NotAllowed as refused:
            return await self._all_page(visitor, refused, form.text("url"))
        return await self._one_page(visitor, made.id, secret=secret)

    async def _one(self, request: Request, id: str) -> Response:
        asked, visitor = request.query_params, await self._sign_in.visitor(request)
        wanted = next((state for state in STATES if state == asked.get("state")), None)
        return await self._one_page(visitor, id, state=wanted, before=asked.get("before") or None)

    async def _one_page(self, visitor: Visitor, id: str, refused: NotAllowed | None = None, secret: str = "",
                        state: State | None = None, before: str | None = None) -> Response:
        webhook = await self._webhooking.webhook(visitor.actor, id)
        deliveries, older = await self._webhooking.deliveries(visitor.actor, id, state, ROWS, before)
        return visitor.page("webhook.html", "A webhook", here="Webhooks", refused=refused, webhook=webhook,
                            secret=secret, deliveries=deliveries, older=quote(older or "", safe=""), paged=before,
                            state=state, states=STATES, types=tuple(EventType))

    async def _change(self, request: Request, id: str) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            await self._webhooking.change(visitor.actor, id, _settings(form, enabled=form.text("enabled") == "1"))
        except NotAllowed as refused:
            return await self._one_page(visitor, id, refused)
        return RedirectResponse(f"{WEBHOOKS}/{id}", 303)

    async def _new_secret(self, request: Request, id: str) -> Response:
        visitor, _ = await self._sign_in.posted(request)
        return await self._one_page(visitor, id, secret=await self._webhooking.new_secret(visitor.actor, id))

    async def _test(self, request: Request, id: str) -> Response:
        visitor, _ = await self._sign_in.posted(request)
        number = await self._webhooking.test(visitor.actor, id)
        return RedirectResponse(f"{WEBHOOKS}/{id}/deliveries/{number}", 303)

    async def _remove(self, request: Request, id: str) -> Response:
        visitor, _ = await self._sign_in.posted(request)
        await self._webhooking.remove(visitor.actor, id)
        return RedirectResponse(WEBHOOKS, 303)

    async def _delivery(self, request: Request, id: str, number: Number) -> Response:
        visitor = await self._sign_in.visitor(request)
        delivery, body, attempts = await self._webhooking.delivery(visitor.actor, id, number)
        return visitor.page("delivery.html", f"Delivery {number}", here="Webhooks", delivery=delivery, body=body,
                            attempts=attempts)

    async def _replay(self, request: Request, id: str, number: Number) -> Response:
        visitor, _ = await self._sign_in.posted(request)
        await self._webhooking.replay(visitor.actor, id, number)
        return RedirectResponse(f"{WEBHOOKS}/{id}/deliveries/{number}", 303)


def _settings(form: Form, *, enabled: bool) -> WebhookSettings:
    return parsed(_SETTINGS, {"url": form.text("url").strip(), "events": tuple(form.all("event")),
                              "description": form.text("description"), "enabled": enabled})
