"""The dashboard under /admin: pages for people, and what their scripts ask for.

Who is at the browser is looked up at each request (`SignIn`), and whether they may is checked where it is done
(`Service`); a page only leaves out what its viewer may not do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from admin.access import Access
from admin.api_calls import download, give
from admin.charts import histogram, lines
from admin.listening import Listening
from admin.live import LiveStreams
from admin.messages import as_json, parsed, read_json
from admin.pages import HERE
from admin.service import NotAllowed, Permission, Service
from admin.sign_in import SignIn
from admin.sound import sound
from admin.timeline import story, timeline
from calls.events import HOPS, TURNS, EndReason
from calls.findings import findings_of
from calls.latencies import CARRIERS, MEASURED, MOST_CALLS, PERIODS, Wanted
from calls.reports import RUNNING, CallFilter
from calls.settings import Settings

ROWS = 50  # of a page
PROTOCOLS = {"sip": "phone", "webrtc": "browser", "chat": "Moshi client"}
REASONS = (RUNNING, *(reason.value for reason in EndReason))
OFFER_BYTES = 64 * 1024
WITH_MICROPHONE = {"Permissions-Policy": "microphone=(self), camera=(), geolocation=()"}
SCRIPTS = {".js": "text/javascript", ".svg": "image/svg+xml"}
MEANINGS = {
    "bridge": "waiting in the bridge", "link": "to the worker and back", "wait": "waiting for the step",
    "step": "the model's step", "playout": "waiting to be heard", "whole": "caller's last sample to agent's first",
    "response": "the caller ends, the agent begins", "yield": "the caller interrupts, the agent falls silent",
    "gap": "the agent ends, the caller begins",
}


class _Offer(BaseModel):
    """A browser's, which wants to listen."""

    model_config = ConfigDict(extra="forbid")

    sdp: Annotated[str, Field(max_length=OFFER_BYTES)]


_OFFER: TypeAdapter[_Offer] = TypeAdapter(_Offer)


class Dashboard:
    """The routes' work."""

    def __init__(self, service: Service, access: Access, sign_in: SignIn, listening: Listening, settings: Settings
                 ) -> None:
        self._service, self._sign_in, self._listening, self._settings = service, sign_in, listening, settings
        self._streams = LiveStreams(service, access)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin")
        answer: Callable[..., Awaitable[Response]]
        for path, answer in (
                ("", self._live), ("/events", self._events), ("/calls", self._calls), ("/calls/{call}", self._call),
                ("/ice-servers", self._ice_servers),
                ("/calls/{call}/transcript.{kind}", self._transcript), ("/recordings/{call}", self._recording),
                ("/latency", self._latency), ("/workers", self._workers), ("/assets/{name}", self._asset)):
            router.add_api_route(path, answer, methods=["GET"], response_class=Response)
        for path, answer in (
                ("/calls/{call}/controls", self._control), ("/calls/{call}/listeners", self._listen),
                ("/calls/{call}/erase", self._erase), ("/listeners/{tap}", self._go_on)):
            router.add_api_route(path, answer, methods=["POST"], response_class=Response)
        return router

    # live

    async def _live(self, request: Request) -> Response:
        visitor = await self._sign_in.visitor(request)
        visitor.actor.must(Permission.SEE)
        return visitor.page("live.html", "Live", headers=WITH_MICROPHONE, settings=self._settings,
                     acts=visitor.actor.may(Permission.ACT))

    async def _events(self, request: Request) -> Response:
        return self._streams.open(await self._sign_in.visitor(request))

    async def _control(self, request: Request, call: str) -> Response:
        visitor = await self._sign_in.by_script(request)
        return await give(self._service, visitor.actor, call, request, 0.0)

    async def _ice_servers(self, request: Request) -> Response:
        return as_json(self._listening.servers((await self._sign_in.visitor(request)).actor))

    async def _listen(self, request: Request, call: str) -> Response:
        """A browser's peer connection on a call that runs; what it is told goes on by `_go_on`."""
        visitor = await self._sign_in.by_script(request)
        visitor.actor.must(Permission.ACT)
        offer = parsed(_OFFER, await read_json(request, OFFER_BYTES))
        tap, sdp = await self._listening.begin(visitor.actor, call, offer.sdp)
        return as_json({"tap": tap, "sdp": sdp}, 201)

    async def _go_on(self, request: Request, tap: str) -> Response:
        await self._listening.go_on((await self._sign_in.by_script(request)).actor, tap)
        return Response(status_code=204)

    # calls

    async def _calls(self, request: Request) -> Response:
        visitor, asked = await self._sign_in.visitor(request), request.query_params
        wanted = CallFilter(_one_of(asked.get("transport", ""), tuple(PROTOCOLS)),
                            _one_of(asked.get("reason", ""), REASONS), asked.get("said") == "1",
                            asked.get("q", "").strip()[:500])
        listed = await self._service.calls(visitor.actor, wanted, ROWS, asked.get("before") or None)
        query = {name: value for name, value in (
            ("q", wanted.words), ("transport", wanted.protocol), ("reason", wanted.reason),
            ("said", "1" if wanted.said else "")) if value}
        older = urlencode(query | {"before": listed[-1].cursor}) if len(listed) == ROWS else ""
        return visitor.page("calls.html", "Calls", listed=listed, wanted=wanted, query=urlencode(query), older=older,
                     paged="before" in asked, protocols=PROTOCOLS, reasons=REASONS)

    async def _call(self, request: Request, call: str) -> Response:
        visitor = await self._sign_in.visitor(request)
        kept = await self._service.call(visitor.actor, call)
        findings = findings_of(kept.call, measures=kept.measures, moves=(), line=kept.line, recording=kept.recording,
                               heard={one.speaker for one in kept.utterances}, recorded=False)
        return visitor.page("call.html", f"Call of {kept.call.caller or 'somebody'}", here="Calls", kept=kept,
                            findings=[each for each in findings if each.verdict != "good"],
                     call=kept.call, story=story(kept), lanes=timeline(kept), hops=HOPS, turns=TURNS, meanings=MEANINGS,
                     protocols=PROTOCOLS)

    async def _erase(self, request: Request, call: str) -> Response:
        visitor, _ = await self._sign_in.posted(request)
        await self._service.erase(visitor.actor, call)
        return RedirectResponse("/admin/calls", 303)

    async def _transcript(self, request: Request, call: str, kind: str) -> Response:
        visitor = await self._sign_in.visitor(request)
        return download(*await self._service.transcript(visitor.actor, call, kind), kind)

    async def _recording(self, request: Request, call: str) -> Response:
        visitor = await self._sign_in.visitor(request)
        return sound(request, *await self._service.recording(visitor.actor, call))

    # how it goes

    async def _latency(self, request: Request) -> Response:
        visitor = await self._sign_in.visitor(request)
        asked = request.query_params
        wanted = Wanted(
            _one_of(asked.get("measure", ""), MEASURED) or "response", _one_of(asked.get("period", ""), tuple(PERIODS))
            or "day", *(asked.get(name, "")[:256] for name in CARRIERS))
        report = await self._service.latencies(visitor.actor, wanted)

        def link(**changed: str) -> str:
            """This page, with something else asked for."""
            query = {name: value for name, value in {**asdict(wanted), **changed}.items() if value}
            return f"/admin/latency?{urlencode(query)}"

        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for one in await self._service.latency(visitor.actor):
            found.setdefault(one.protocol, {})[one.name] = asdict(one)
        return visitor.page(
            "latency.html", "Latency", found=found, hops=HOPS, turns=TURNS, meanings=MEANINGS, protocols=PROTOCOLS,
            report=report, wanted=wanted, link=link, periods=tuple(PERIODS), carriers=CARRIERS,
            histogram=histogram(report.spread), lines=lines(report.moments, report.until), most_calls=MOST_CALLS)

    async def _workers(self, request: Request) -> Response:
        visitor = await self._sign_in.visitor(request)
        return visitor.page("workers.html", "Workers", fleet=await self._service.fleet(visitor.actor),
                     protocols=PROTOCOLS)

    # scripts

    async def _asset(self, request: Request, name: str) -> Response:
        await self._sign_in.visitor(request)
        path = HERE / "assets" / name
        if path.suffix not in SCRIPTS or path.parent != HERE / "assets" or not path.is_file():
            raise NotAllowed(404, "not_found", "There is no such file.")
        return FileResponse(path, media_type=SCRIPTS[path.suffix], headers={
            "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})


def _one_of(value: str, known: tuple[str, ...]) -> str:
    return value if value in known else ""
