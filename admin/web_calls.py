"""Calls from browsers over HTTP: tokens, offers and their answers (docs/widget.md has the page's side).

Every request is checked in this order: its size, its origin, how often its address has asked, its token, its content.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from redis.asyncio import Redis
from starlette.requests import ClientDisconnect

from calls import turn
from calls.agents import Agent
from calls.configuration import Follower
from calls.offers import Answer, Offers
from calls.routing import RoutingUnavailable
from calls.settings import Settings
from calls.sites import Site
from calls.web_guard import WebGuard
from calls.web_tokens import (
    CALL_GOOD_FOR_S,
    LEEWAY_S,
    SITE_GOOD_FOR_S,
    BadToken,
    ResumeToken,
    WebTokens,
    read_visitor,
)
from media.webrtc.sdp import BadSdp, parse_offer

log = logging.getLogger(__name__)

BODY_BYTES = 64 * 1024
BODY_S = 10.0  # for all of it to come
RESUME_WITHIN_S = 10  # as media.webrtc.call has it
PREFLIGHT_S = 600  # for which a browser keeps what it was allowed
PREFIX = "/api/web"

STATUSES = {
    "bad_request": 400, "bad_token": 401, "wrong_origin": 403, "unknown_agent": 404, "call_over": 404,
    "too_large": 413, "bad_sdp": 422, "rate_limited": 429, "busy": 503, "unavailable": 503,
}
MESSAGES = {
    "busy": "All lines are taken. Please try again in a moment.",
    "unavailable": "Calls can't be taken just now. Please try again later.",
    "call_over": "The call is over.",
    "wrong_origin": "This page may not make calls here.",
    "bad_token": "The permission for this call isn't valid any more. Please try again.",
    "rate_limited": "Too many tries from your network. Please wait a moment.",
    "too_large": "The request is too large.",
}


class Refused(Exception):
    """The answer to a request that isn't taken."""

    def __init__(self, code: str, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message or MESSAGES[code])
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Asked:
    """A request that has passed the checks that all have in common."""

    origin: str
    client: str
    body: dict[str, Any]
    bearer: str | None

    def text(self, name: str, longest: int = BODY_BYTES) -> str:
        value = self.body.get(name)
        if not isinstance(value, str) or len(value) > longest:
            raise Refused("bad_request", f"The request needs a text '{name}'.")
        return value


Handler = Callable[[Asked], Awaitable[Response]]


class WebCalls:
    """The routes' work."""

    def __init__(self, settings: Settings, redis: Redis, secret: bytes, configuration: Follower) -> None:
        self._settings, self._configuration = settings, configuration
        self._sites = settings.sites
        self._tokens = WebTokens(secret)
        self._offers = Offers(redis)
        self._guard = WebGuard(redis, settings.web_requests_per_minute)

    def router(self) -> APIRouter:
        router = APIRouter(prefix=PREFIX)

        @router.post("/sessions")
        async def sessions(request: Request) -> Response:
            return await self._handle(request, "sessions", self._new_session)

        @router.post("/calls")
        async def calls(request: Request) -> Response:
            return await self._handle(request, "calls", self._new_call)

        @router.post("/calls/{call}/offers")
        async def offers(request: Request, call: str) -> Response:
            return await self._handle(request, "offers", lambda asked: self._later_offer(asked, call))

        @router.delete("/calls/{call}")
        async def delete(request: Request, call: str) -> Response:
            return await self._handle(request, "ends", lambda asked: self._end(asked, call, asked.bearer))

        @router.post("/calls/{call}/end")
        async def end(request: Request, call: str) -> Response:
            return await self._handle(
                request, "ends", lambda asked: self._end(asked, call, asked.text("resume_token")))

        @router.options("/{path:path}")
        async def preflight(request: Request, path: str) -> Response:
            origin = request.headers.get("origin", "")
            if not self._sites.knows(origin):
                return self._refusal(Refused("wrong_origin"), origin)
            allowed = {"Access-Control-Allow-Methods": "POST, DELETE",
                       "Access-Control-Allow-Headers": "Authorization, Content-Type",
                       "Access-Control-Max-Age": str(PREFLIGHT_S)}
            return Response(status_code=204, headers=self._cors(origin) | allowed)

        return router

    async def _handle(self, request: Request, kind: str, handler: Handler) -> Response:
        """A request's edge: what all of them have in common."""
        origin = request.headers.get("origin", "")
        try:
            response = await handler(await self._asked(request, kind, origin))
        except Refused as refused:
            response = self._refusal(refused, origin)
        except BadToken as bad:
            response = self._refusal(Refused("bad_token", f"The permission isn't valid: {bad}."), origin)
        except RoutingUnavailable as away:
            log.warning("a browser's call isn't taken: %s", away)
            response = self._refusal(Refused("unavailable"), origin)
        response.headers.update(self._cors(origin))
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _asked(self, request: Request, kind: str, origin: str) -> Asked:
        body = await _body(request)
        if not self._sites.knows(origin):
            raise Refused("wrong_origin")
        client = request.client.host if request.client else ""
        if (wait_s := await self._guard.wait_s(kind, client)) > 0:
            raise Refused("rate_limited", retry_after_s=wait_s)
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        return Asked(origin, client, _json(body), bearer.strip() if scheme.lower() == "bearer" else None)

    async def _new_session(self, asked: Asked) -> Response:
        key, agent = asked.text("key", 128), asked.body.get("agent")
        site = self._site(key, asked.origin)
        visitor = ""
        if site.secret is not None:
            if not isinstance(asked.body.get("token"), str):
                raise Refused("bad_token", "This site gives each visitor a token, and there is none.")
            signed = read_visitor(asked.text("token"), key, site.secret.get_secret_value(), time.time())
            if not await self._guard.use(f"visitor {key}", signed.id, SITE_GOOD_FOR_S + 2 * LEEWAY_S):
                raise Refused("bad_token", "This visitor's token has been used already.")
            visitor, agent = signed.name, signed.agent or agent
        found = self._agent(site.agents[0] if agent is None else agent, site)
        token = self._tokens.call(key, asked.origin, found.name, visitor, time.time())
        return JSONResponse({
            "token": token, "expires_in": CALL_GOOD_FOR_S, "agent": found.name,
            "ice_servers": turn.ice_servers(self._settings, "browser"),
            "recorded": found.recorded and self._settings.recording == "on"}, 201)

    def _agent(self, wanted: Any, site: Site) -> Agent:
        """Whom the page asks for: by a public key, or by a name or number that the site may call."""
        agent = self._configuration.now.named(wanted) if isinstance(wanted, str) else None
        if agent is None or not ({wanted, agent.name} & set(site.agents) or wanted == agent.public_key):
            raise Refused("unknown_agent", "There is no such agent here.")
        return agent

    async def _new_call(self, asked: Asked) -> Response:
        token = self._tokens.read_call(asked.bearer or "", time.time())
        self._same_origin(token.origin, token.key, asked)
        sdp = _checked_sdp(asked)
        if not await self._guard.use("call", token.id, 2 * CALL_GOOD_FOR_S):
            raise Refused("bad_token", "The permission for this call has been used already.")
        answer = self._taken(await self._offers.call(
            sdp, agent=token.agent, origin=token.origin, client=asked.client, visitor=token.visitor,
            reference=token.id))
        resume = self._tokens.resume(answer.call, answer.bridge, token.key, token.origin, time.time())
        return JSONResponse({"call": answer.call, "sdp": answer.sdp, "resume_token": resume,
                             "resume_within": RESUME_WITHIN_S}, 201)

    async def _later_offer(self, asked: Asked, call: str) -> Response:
        token = self._resume_token(asked, call, asked.bearer)
        answer = self._taken(await self._offers.offer(token.bridge, call, _checked_sdp(asked)))
        resume = self._tokens.resume(call, token.bridge, token.key, token.origin, time.time())
        return JSONResponse({"sdp": answer.sdp, "resume_token": resume})

    async def _end(self, asked: Asked, call: str, bearer: str | None) -> Response:
        token = self._resume_token(asked, call, bearer)
        self._taken(await self._offers.end(token.bridge, call))
        return Response(status_code=204)

    def _resume_token(self, asked: Asked, call: str, bearer: str | None) -> ResumeToken:
        token = self._tokens.read_resume(bearer or "", time.time())
        if token.call != call:
            raise BadToken("it is of another call")
        self._same_origin(token.origin, token.key, asked)
        return token

    def _same_origin(self, origin: str, key: str, asked: Asked) -> None:
        self._site(key, asked.origin)
        if origin != asked.origin:
            raise Refused("wrong_origin")

    def _site(self, key: str, origin: str) -> Site:
        site = self._sites.get(key)
        if site is None or origin not in site.origins:
            raise Refused("wrong_origin")
        return site

    def _taken(self, answer: Answer) -> Answer:
        match answer.error:
            case "":
                return answer
            case "busy":
                raise Refused("busy", retry_after_s=self._settings.retry_after_s)
            case "bad_sdp":
                raise Refused("bad_sdp", f"The browser's offer isn't taken: {answer.message}.")
            case "unavailable" | "call_over" as code:
                raise Refused(code)

    def _refusal(self, refused: Refused, origin: str) -> Response:
        response = JSONResponse({"error": refused.code, "message": str(refused)}, STATUSES[refused.code])
        if refused.retry_after_s is not None:
            response.headers["Retry-After"] = str(math.ceil(refused.retry_after_s))
        response.headers.update(self._cors(origin))
        return response

    def _cors(self, origin: str) -> dict[str, str]:
        """What lets the pages of a site read the answer, and nobody else's."""
        allowed = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "Retry-After"}
        return {"Vary": "Origin"} | (allowed if self._sites.knows(origin) else {})


async def _body(request: Request) -> bytes:
    """All of it, if it isn't too large."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > BODY_BYTES:
        raise Refused("too_large")
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise Refused("too_large")
    except (TimeoutError, ClientDisconnect):
        raise Refused("bad_request", "The request didn't come whole.") from None
    return body


def _json(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Refused("bad_request", "The request must be a JSON object.")
    return content


def _checked_sdp(asked: Asked) -> str:
    sdp = asked.text("sdp")
    try:
        parse_offer(sdp)
    except BadSdp as bad:
        raise Refused("bad_sdp", f"The browser's offer isn't taken: {bad}.") from None
    return sdp
