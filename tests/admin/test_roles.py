"""Every way in, from the application's own table of routes, with every role, keys of each scope, forged ones and none.

A route without a rule here fails: say who may.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Browser
from web_role import NO_DATABASE, SECRET, serving
from websockets.asyncio.client import connect

from admin.app import create_app
from admin.service import ROLES, SCOPES, Permission
from calls.api_keys import ApiKeys, Scope
from calls.audit import Audit
from calls.connect import open_redis
from calls.operators import Operators, Role
from calls.settings import Settings
from calls.store import Store

Route = tuple[str, str]
Needed = Permission | frozenset[Permission] | None
KEY = "key of"
METRICS_TOKEN = "m" * 32

# Whoever comes: the widget's endpoints and what they need, health, the sign-in.
OPEN: set[Route] = {
    ("GET", "/"), ("GET", "/demo/{name}"), ("GET", "/tandem-call.js"), ("GET", "/healthz"), ("GET", "/login"),
    ("POST", "/login"), ("POST", "/login/code"), ("GET", "/login/dashboard.css"), ("OPTIONS", "/api/web/{path:path}"),
    ("POST", "/api/web/sessions"), ("POST", "/api/web/calls"), ("POST", "/api/web/calls/{call}/offers"),
    ("POST", "/api/web/calls/{call}/end"), ("DELETE", "/api/web/calls/{call}"),
}
BY_TOKEN: set[Route] = {("GET", "/metrics")}  # of the settings: tests/admin/test_metrics.py

SEE, ACT, CONFIGURE = Permission.SEE, Permission.ACT, Permission.CONFIGURE
KEYS, OPERATORS, AUDIT = Permission.KEYS, Permission.OPERATORS, Permission.AUDIT
CONFIGURE_AND_SEE = frozenset({CONFIGURE, SEE})

# Operators' browsers: the permission that it takes; None: whoever is signed in.
BY_SESSION: dict[Route, Needed] = {
    ("GET", "/admin"): SEE, ("GET", "/admin/events"): SEE, ("GET", "/admin/calls"): SEE,
    ("GET", "/admin/calls/{call}"): SEE, ("GET", "/admin/calls/{call}/transcript.{kind}"): SEE,
    ("GET", "/admin/recordings/{call}"): SEE, ("GET", "/admin/latency"): SEE, ("GET", "/admin/workers"): SEE,
    ("GET", "/admin/assets/{name}"): None,
    ("GET", "/admin/ice-servers"): ACT, ("POST", "/admin/calls/{call}/controls"): ACT,
    ("POST", "/admin/calls/{call}/listeners"): ACT, ("POST", "/admin/listeners/{tap}"): ACT,
    ("GET", "/admin/keys"): KEYS, ("POST", "/admin/keys"): KEYS, ("POST", "/admin/keys/revoke"): KEYS,
    ("GET", "/admin/operators"): OPERATORS, ("POST", "/admin/operators"): OPERATORS,
    ("POST", "/admin/operators/disable"): OPERATORS, ("POST", "/admin/operators/second-factor/reset"): OPERATORS,
    ("GET", "/admin/audit"): AUDIT,
    ("GET", "/admin/agents"): SEE, ("POST", "/admin/agents"): CONFIGURE, ("GET", "/admin/agents/{name}"): SEE,
    ("POST", "/admin/agents/{name}"): CONFIGURE, ("POST", "/admin/agents/{name}/public-key"): CONFIGURE,
    ("POST", "/admin/agents/{name}/remove"): CONFIGURE, ("POST", "/admin/numbers"): CONFIGURE,
    ("POST", "/admin/numbers/remove"): CONFIGURE,
    ("GET", "/admin/telephony"): SEE, ("POST", "/admin/telephony"): CONFIGURE,
    ("POST", "/admin/telephony/calls"): ACT, ("POST", "/admin/telephony/bans/lift"): CONFIGURE,
    ("GET", "/admin/retention"): SEE, ("POST", "/admin/retention"): Permission.ERASE,
    ("POST", "/admin/calls/{call}/erase"): Permission.ERASE,
    ("GET", "/admin/webhooks"): CONFIGURE, ("POST", "/admin/webhooks"): CONFIGURE,
    ("GET", "/admin/webhooks/{id}"): CONFIGURE, ("POST", "/admin/webhooks/{id}"): CONFIGURE,
    ("POST", "/admin/webhooks/{id}/secret"): CONFIGURE, ("POST", "/admin/webhooks/{id}/test"): CONFIGURE,
    ("POST", "/admin/webhooks/{id}/remove"): CONFIGURE,
    ("GET", "/admin/webhooks/{id}/deliveries/{number}"): CONFIGURE_AND_SEE,
    ("POST", "/admin/webhooks/{id}/deliveries/{number}/replay"): CONFIGURE,
    ("GET", "/admin/account"): None, ("POST", "/admin/account/password"): None,
    ("POST", "/admin/account/sessions/end"): None, ("POST", "/admin/account/second-factor"): None,
    ("POST", "/admin/account/second-factor/confirm"): None, ("POST", "/admin/account/second-factor/remove"): None,
    ("POST", "/admin/account/recovery-codes"): None, ("POST", "/logout"): None,
}

# Programs: the permission that one of the key's scopes must mean.
BY_KEY: dict[Route, Needed] = {
    ("GET", "/api/openapi.json"): None,
    ("GET", "/api/v1/calls"): SEE, ("POST", "/api/v1/calls"): ACT, ("GET", "/api/v1/calls/{call}"): SEE,
    ("GET", "/api/v1/calls/{call}/recording"): SEE, ("GET", "/api/v1/calls/{call}/transcript.{kind}"): SEE,
    ("POST", "/api/v1/calls/{call}/controls"): ACT, ("WS", "/api/v1/calls/{call}/live"): SEE,
    ("DELETE", "/api/v1/calls/{call}"): Permission.ERASE, ("GET", "/api/v1/calls/{call}/latency"): SEE,
    ("GET", "/api/v1/calls/{call}/words"): SEE,
    ("GET", "/api/v1/live"): SEE, ("GET", "/api/v1/live/events"): SEE, ("GET", "/api/v1/search"): SEE,
    ("GET", "/api/v1/latency"): SEE, ("GET", "/api/v1/latency/{measure}"): SEE, ("GET", "/api/v1/fleet"): SEE,
    ("GET", "/api/v1/keys"): KEYS, ("POST", "/api/v1/keys"): KEYS, ("DELETE", "/api/v1/keys/{id}"): KEYS,
    ("GET", "/api/v1/operators"): OPERATORS, ("POST", "/api/v1/operators"): OPERATORS,
    ("DELETE", "/api/v1/operators/{name}"): OPERATORS, ("GET", "/api/v1/audit"): AUDIT,
    ("GET", "/api/v1/agents"): SEE, ("GET", "/api/v1/agents/{name}"): SEE, ("PUT", "/api/v1/agents/{name}"): CONFIGURE,
    ("DELETE", "/api/v1/agents/{name}"): CONFIGURE, ("POST", "/api/v1/agents/{name}/public-key"): CONFIGURE,
    ("GET", "/api/v1/numbers"): SEE, ("PUT", "/api/v1/numbers/{pattern}"): CONFIGURE,
    ("DELETE", "/api/v1/numbers/{pattern}"): CONFIGURE,
    ("GET", "/api/v1/telephony"): SEE, ("PUT", "/api/v1/telephony"): CONFIGURE,
    ("GET", "/api/v1/telephony/trunks"): SEE, ("GET", "/api/v1/telephony/bans"): SEE,
    ("DELETE", "/api/v1/telephony/bans/{address}"): CONFIGURE,
    ("GET", "/api/v1/retention"): SEE, ("PUT", "/api/v1/retention"): Permission.ERASE,
    ("GET", "/api/v1/webhooks"): CONFIGURE, ("POST", "/api/v1/webhooks"): CONFIGURE,
    ("GET", "/api/v1/webhooks/{id}"): CONFIGURE, ("PUT", "/api/v1/webhooks/{id}"): CONFIGURE,
    ("DELETE", "/api/v1/webhooks/{id}"): CONFIGURE, ("POST", "/api/v1/webhooks/{id}/secret"): CONFIGURE,
    ("POST", "/api/v1/webhooks/{id}/test"): CONFIGURE, ("GET", "/api/v1/webhooks/{id}/deliveries"): CONFIGURE,
    ("GET", "/api/v1/webhooks/{id}/deliveries/{number}"): CONFIGURE_AND_SEE,
    ("POST", "/api/v1/webhooks/{id}/deliveries/{number}/replay"): CONFIGURE,
}
# What is sent, so that nothing but the permission is missing; of all others an empty form or object.
HOOK = {"url": "https://hook.invalid/", "events": ["call.ended"]}
SENT: dict[str, dict[str, Any]] = {
    "/admin/keys": {"name": "dialler", "scope": ["calls:read"]},
    "/admin/operators": {"name": "new", "password": PASSWORD, "role": "viewer"},
    "/api/v1/keys": {"name": "dialler", "scopes": ["admin"]},
    "/api/v1/operators": {"name": "another", "password": PASSWORD, "role": "viewer"},
    "/admin/calls/{call}/controls": {"action": "speak"}, "/api/v1/calls/{call}/controls": {"action": "speak"},
    "/admin/calls/{call}/listeners": {"sdp": "x"}, "/api/v1/agents/{name}": {"model": "echo"},
    "/api/v1/numbers/{pattern}": {"agent": "echo"},
    "/api/v1/webhooks": HOOK, "/api/v1/webhooks/{id}": HOOK, "/admin/webhooks": HOOK, "/admin/webhooks/{id}": HOOK,
    "/admin/agents": {"name": "another", "model": "echo"}, "/admin/agents/{name}": {"model": "echo"},
    "/admin/numbers": {"pattern": "4930", "agent": "echo"}, "/admin/telephony": {"document": "{}"},
    "/admin/telephony/bans/lift": {"address": "192.0.2.1"}, "/admin/telephony/calls": {"to": "sip:ann@example.org"},
}
SCRIPTS = ("/controls", "/listeners", "/listeners/{tap}")  # JSON with the page's token in a header


@dataclass(frozen=True)
class Visitor:
    """Somebody who comes with these credentials."""

    name: str
    permissions: frozenset[Permission] = frozenset()
    headers: dict[str, str] = field(default_factory=dict)
    form_token: str = "0" * 64

    @property
    def is_signed_in(self) -> bool:
        return self.name in list(Role)

    @property
    def has_key(self) -> bool:
        return self.name.startswith(KEY)


def _routes() -> set[Route]:
    app = create_app(open_redis("redis://127.0.0.1:1"), Settings(metrics_token=METRICS_TOKEN), SECRET,
                     Store(NO_DATABASE))
    found: set[Route] = set()
    for outer in app.routes:
        contexts: Iterable[Any] = outer.effective_route_contexts() if hasattr(outer, "effective_route_contexts") else (
            outer,)
        for route in contexts:
            path = route.path or route.original_route.path  # of a WebSocket
            found |= {(method, path) for method in getattr(route, "methods", None) or ("WS",)}
    return {(method, path) for method, path in found if method != "HEAD"}


def test_each_route_has_a_rule_and_each_rule_a_route() -> None:
    routes, rules = _routes(), OPEN | BY_TOKEN | set(BY_SESSION) | set(BY_KEY)
    assert routes - rules == set(), "say here who may"
    assert rules - routes == set()
    assert len(rules) == len(OPEN) + len(BY_TOKEN) + len(BY_SESSION) + len(BY_KEY)


@pytest.fixture
async def port(redis_url: str, redis: Redis, store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
               ) -> AsyncIterator[int]:
    monkeypatch.setattr("admin.access.WRONG_KEYS_PER_MINUTE", 10_000)
    async with serving(redis_url, database_url, metrics_token=METRICS_TOKEN) as port:
        yield port


@pytest.fixture
async def visitors(port: int, store: Store) -> list[Visitor]:
    forged = f"tandem_{'a' * 12}_{'b' * 43}"
    found = [Visitor("nobody"), Visitor("a forged session", headers={"Cookie": f"tandem_session={'x' * 43}"}),
             Visitor("a forged key", headers={"Authorization": f"Bearer {forged}"}),
             Visitor("a key as a session", headers={"Cookie": f"tandem_session={forged}"})]
    for role in Role:
        await Operators(store).make(role.value, PASSWORD, role)
        browser = Browser(port)
        await browser.signs_in(role.value)
        token = (await browser.get("/admin")).form_token
        session = browser.cookies["tandem_session"]
        found.append(Visitor(role.value, ROLES[role], {"Cookie": f"tandem_session={session}"}, token))
    found.append(Visitor("a session as a key", headers={"Authorization": f"Bearer {session}"}))
    for scopes in (*((scope,) for scope in Scope), tuple(Scope)):
        _, key = await ApiKeys(store).make("program", scopes)
        permissions = frozenset[Permission]().union(*(SCOPES[scope] for scope in scopes))
        found.append(Visitor(f"{KEY} {scopes}", permissions, {"Authorization": f"Bearer {key}"}))
    return found


async def _asked(port: int, visitor: Visitor, route: Route, form_token: str | None = None) -> tuple[int, str]:
    """The status, and where it leads or what is wrong."""
    method, path = route
    there = path.format(call="none", kind="vtt", name="live.js" if "assets" in path else "echo", tap="none", id="none",
                        number=1, pattern="4930", measure="response", address="192.0.2.1")
    there += "?q=parking" if path.endswith("/search") else ""
    if method == "WS":
        return await _live(port, visitor, there)
    token = visitor.form_token if form_token is None else form_token
    headers, body = {**visitor.headers, "X-Form-Token": token}, SENT.get(path, {})
    if method in ("GET", "DELETE"):
        data = None
        headers |= {"Accept": "text/html"}
    elif path.startswith("/api/") or path.endswith(SCRIPTS):
        data = json.dumps(body)
    else:
        data = urlencode({"form_token": token, **body}, doseq=True)
        headers |= {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}

    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, there, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Location", "")
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def _live(port: int, visitor: Visitor, path: str) -> tuple[int, str]:
    """What the first message says: a snapshot's, an error's, as HTTP would say it."""
    async with connect(f"ws://127.0.0.1:{port}{path}", additional_headers=visitor.headers, proxy=None) as socket:
        if "Authorization" not in visitor.headers:
            await socket.send("{}")
        said = json.loads(await socket.recv())
    return {"unauthorized": 401, "forbidden": 403, "not_found": 404}.get(said.get("error", ""), 200), ""


def _all_of(needed: Needed) -> frozenset[Permission]:
    if needed is None:
        return frozenset()
    return frozenset({needed}) if isinstance(needed, Permission) else needed


async def test_each_gets_what_they_may_and_nobody_gets_more(port: int, visitors: list[Visitor]) -> None:
    wrong = []
    for visitor in visitors:
        for route, needed in {**BY_SESSION, **BY_KEY}.items():
            if route == ("POST", "/logout") and visitor.is_signed_in:
                continue
            known = visitor.is_signed_in if route in BY_SESSION else visitor.has_key
            status, there = await _asked(port, visitor, route)
            if not known:
                right = status == 401 or (status == 303 and there.startswith("/login?next="))
            elif not _all_of(needed) <= visitor.permissions:
                right = status == 403
            else:  # 503: no SIP process is there to make a call
                right = status not in (401, 403, 500) and not there.startswith("/login")
            if not right:
                wrong.append((visitor.name, *route, status, there))
    assert wrong == []


async def test_what_is_open_breaks_for_nobody(port: int) -> None:
    for visitor in (Visitor("nobody"), Visitor("a forged session", headers={"Cookie": f"tandem_session={'x' * 43}"})):
        for route in OPEN - {("GET", "/healthz")}:  # which says that nothing runs here
            status, _ = await _asked(port, visitor, (route[0], route[1].replace("{path:path}", "calls")))
            assert status < 500, (visitor.name, route)
    assert (await _asked(port, Visitor("nobody"), ("GET", "/metrics")))[0] == 401


async def test_forged_events_do_nothing(port: int, visitors: list[Visitor], store: Store) -> None:
    """What a page of others sends in the name of an operator who is signed in, their browser's cookie with it."""
    [admin] = [visitor for visitor in visitors if visitor.name == Role.ADMIN]
    [other] = [visitor for visitor in visitors if visitor.name == Role.OPERATOR]
    before = [entry.id for entry in await Audit(store).newest()]
    for token in ("", "0" * 64, other.form_token):
        for route in BY_SESSION:
            if route[0] == "POST":
                assert (await _asked(port, admin, route, token))[0] == 403, route
    assert [entry.id for entry in await Audit(store).newest()] == before
    assert (await _asked(port, admin, ("GET", "/admin")))[0] == 200
