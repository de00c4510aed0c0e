"""The dashboard over HTTP, with a real Redis and Postgres: who may see and do what, and what the pages tell."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Browser
from web_role import serving

from calls.api_keys import ApiKeys, Scope
from calls.audit import Audit
from calls.controls import ControlInbox, Result
from calls.events import (
    CallAnswered,
    CallEnded,
    CallLeased,
    CallMeasured,
    CallMoved,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    Event,
    Measure,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.live import EventWriter
from calls.operators import Operators, Role
from calls.paging import cursor
from calls.routing import BridgeRegistry, Heartbeat, WorkerRegistry
from calls.store import Store

AT = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "bridge-1", "agent")
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 0, 0, 0)
NOBODY = "nobody"

SENT = {"/admin/calls/{call}/controls": {"action": "speak"}, "/admin/calls/{call}/listeners": {"sdp": "x"},
        "/admin/listeners/{tap}": {}}
FORMS: dict[str, dict[str, Any]] = {
    "/admin/keys": {"name": "dialler", "scope": ["calls:read"]},
    "/admin/keys/revoke": {"id": "none"},
    "/admin/operators": {"name": "new", "password": PASSWORD, "role": "viewer"},
    "/admin/operators/disable": {"name": "none"},
}


def _said(text: str, first_k: int, speaker: Speaker, *, final: bool = True) -> UtteranceSpoken:
    words = tuple(Word(word, first_k + at, first_k + at, 0.08 * (first_k + at), 0.08 * (first_k + at + 1))
                  for at, word in enumerate(text.split()))
    return UtteranceSpoken(speaker, first_k, words[-1].last_k, words, final=final)


def _events(*events: Event, call: str = "call-1") -> list[Envelope]:
    return [Envelope(call, "bridge-1", 1, at, AT, event) for at, event in enumerate(events, 1)]


@pytest.fixture
async def port(redis_url: str, redis: Redis, store: Store, database_url: str) -> AsyncIterator[int]:
    for role in Role:
        await Operators(store).make(role.value, PASSWORD, role)
    async with serving(redis_url, database_url) as port:
        yield port


async def _signed_in(port: int, role: str) -> Browser:
    browser = Browser(port)
    if role != NOBODY:
        assert (await browser.signs_in(role)).status == 303
    return browser


@pytest.fixture
async def admin(port: int) -> Browser:
    return await _signed_in(port, "admin")


@pytest.fixture
async def call(store: Store) -> None:
    """A call that is over."""
    await store.apply(_events(
        RECEIVED, CallLeased("nano", "worker-1", "e"), CallAnswered("PCMU"),
        CallMoved("worker-0", "worker-1", "killed", 12, 0.25, 20), _said("hello there", 10, Speaker.AGENT),
        _said("<script>alert(1)</script> parking", 30, Speaker.CALLER),
        ControlTaken("c1", "say", "one <i>moment", False, "bob", AT, "said", 40, 52, ""),
        CallMeasured((Measure("whole", 100, 10.0, 0.1, 0.2, 0.3), Measure("step", 100, 10.0, 0.07, 0.09, 0.3),
                      Measure("response", 2, 1.0, 0.5, 0.6, 0.6))), ENDED))


async def test_what_comes_without_our_pages_token_does_nothing(admin: Browser, store: Store, redis: Redis) -> None:
    await ControlInbox(redis, "bridge-1").here(["call-1"], 30)
    other = await _signed_in(admin.port, "operator")
    for token in ("", "0" * 64, (await other.get("/admin")).form_token):
        for path, form in FORMS.items():
            answer = await admin.post(path, {**form, "form_token": token})
            assert answer.status == 403
            assert "Load it again" in answer.text
        for path, body in SENT.items():
            there = path.format(call="call-1", tap="none")
            assert (await admin.send(there, body, X_Form_Token=token)).status == 403
    assert await ApiKeys(store).all() == ()
    assert len(await Operators(store).all()) == len(Role)
    assert await redis.exists("tandem:{controls bridge-1}") == 0


async def test_rubbish_is_refused_and_breaks_nothing(admin: Browser, redis: Redis) -> None:
    token = (await admin.get("/admin")).form_token
    await ControlInbox(redis, "bridge-1").here(["call-1"], 30)
    for path in ("/admin/keys/revoke", "/admin/operators/disable"):
        assert (await admin.post(path, {"form_token": token, "id": "a\0b", "name": "a\0b"})).status == 404
    assert (await admin.get("/admin/calls/%00")).status == 404
    assert (await admin.get("/admin/calls?q=%00&reason=%00")).status == 200
    assert (await admin.get("/admin/calls?before=%00")).status == 422
    assert (await admin.get("/admin/audit?before=9999999999999999999999")).status == 200
    assert (await admin.get("/admin/assets/..%2Fapp.py")).status == 404
    assert (await admin.get("/admin/assets/dashboard.py")).status == 404
    for body in ({"action": "say", "text": "\ud800"}, {"action": "say", "text": 1}, [[]], "x" * 20_000):
        answer = await admin.send("/admin/calls/call-1/controls", body, X_Form_Token=token)
        assert answer.status in (413, 422), body
    assert (await admin.post("/admin/keys", {"form_token": token, "name": "x" * 20_000})).status == 413
    assert (await admin.post("/admin/keys", {str(n): "" for n in range(200)})).status == 400


async def test_pages_run_nothing_but_our_scripts_and_are_kept_nowhere(admin: Browser, call: None) -> None:
    for path in ("/login", "/admin", "/admin/calls", "/admin/calls/call-1", "/admin/nothing-for-me", "/admin/keys",
                 "/admin/calls/none"):
        answer = await admin.get(path)
        if "text/html" in answer.headers["content-type"]:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["cache-control"] == "no-store"
            assert "<script>" not in answer.text
            assert " style=" not in answer.text
            assert "//" not in answer.text.replace("https://www.w3.org", "").split("<main")[0]  # nothing from elsewhere


async def test_what_isnt_there_is_told_within_the_frame_to_who_is_signed_in_and_by_itself_to_others(
        admin: Browser, port: int) -> None:
    nobody, menu = Browser(port), '<nav aria-label="Dashboard">'
    for path in ("/admin/nothing", "/admin/calls/none", "/nothing?a=b"):
        found = await admin.get(path)
        assert (found.status, menu in found.text, "Sign in" in found.text) == (404, True, False), path
        assert found.form_token == (await admin.get("/admin")).form_token, "and one may sign out there"
    assert '<a href="/admin/audit">Audit</a>' in found.text
    for path in ("/admin/nothing", "/nothing?a=b"):
        found = await nobody.get(path)
        assert (found.status, menu in found.text) == (404, False), path
    assert '<a href="/login?next=%2Fnothing%3Fa%3Db">Sign in</a>' in found.text
    assert (await nobody.get("/admin/calls/none")).status == 303, "what is there is told to nobody"
    assert (await nobody.get("/nothing", Accept="*/*")).json["error"] == "not_found"
    assert (await nobody.get("/api/v1/nothing")).json["error"] == "not_found"
    viewer = await _signed_in(port, "viewer")
    refused = await viewer.get("/admin/keys")
    assert (refused.status, menu in refused.text, "/admin/audit" in refused.text) == (403, True, False)


async def test_the_audit_leads_to_calls_as_long_as_they_are_kept(admin: Browser, call: None, store: Store) -> None:
    await admin.get("/admin/calls/call-1/transcript.vtt")
    await Audit(store).note("ann (operator)", "call erased", "call-0")
    audit = (await admin.get("/admin/audit")).text
    assert '<a href="/admin/calls/call-1" title="call-1">call call-1</a>' in audit
    assert "call-0" in audit
    assert "/admin/calls/call-0" not in audit


async def test_calls_are_found_by_filters_in_the_address(admin: Browser, call: None, store: Store) -> None:
    await store.apply(_events(CallReceived("webrtc", "inbound", "web", "agent", "r", "b", "agent"),
                              CallEnded(EndReason.BUSY, "local", 486, "", 0, 0, 0, 0), call="call-2"))
    for query, found in (("", {1, 2}), ("?transport=webrtc", {2}), ("?reason=busy", {2}), ("?said=1", {1}),
                         ("?q=parking", {1}), ("?q=nothing", set()), ("?transport=rubbish", {1, 2}),
                         ("?transport=sip&reason=busy", set()), (f"?before={cursor(AT, 'call-2')}", {1}),
                         (f"?before={cursor(AT, 'call-1')}", set())):
        page = (await admin.get(f"/admin/calls{query}")).text
        assert {number for number in (1, 2) if f"/admin/calls/call-{number}" in page} == found, query
        assert ("No call is like that" in page) is not found
    page = (await admin.get("/admin/calls?q=parking")).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; parking" in page
    assert '/admin/calls/call-1#at=2.4' in page


async def test_who_may_not_act_sees_nothing_to_press(port: int) -> None:
    for role, sees in ((Role.VIEWER, False), (Role.OPERATOR, True)):
        page = (await (await _signed_in(port, role.value)).get("/admin")).text
        assert ("data-act" in page) is sees
        assert "/admin/keys" not in page


async def test_a_call_tells_all_of_it(admin: Browser, call: None, store: Store) -> None:
    page = (await admin.get("/admin/calls/call-1")).text
    for told in ("sip:ann@example.org", "caller hung up", "nano", "worker-1", "one &lt;i&gt;moment", "said",
                 "moved from worker-0 to <em>worker-1</em> within 250 ms",
                 '<th scope="row">response', ">500<", '<time datetime="2026-11-30T09:00:00+00:00">',
                 'data-start="0.8"', "70.0 / 90.0 ms <small>the model is too slow here"):
        assert told in page, told
    assert "<script>alert" not in page
    assert (await admin.get("/admin/calls/call-1/transcript.csv")).headers["content-type"].startswith("text/csv")
    assert (await admin.get("/admin/calls/none")).status == 404
    assert [entry.action for entry in await Audit(store).newest(1)] == ["transcript exported"]


async def test_a_call_is_erased_by_who_may(port: int, admin: Browser, call: None, store: Store) -> None:
    operator = await _signed_in(port, "operator")
    assert "Erase this call" not in (await operator.get("/admin/calls/call-1")).text
    token = (await admin.get("/admin/calls/call-1")).form_token
    assert (await admin.post("/admin/calls/call-1/erase", {"form_token": token})).status == 303
    assert (await admin.get("/admin/calls/call-1")).status == 404
    [entry] = await Audit(store).newest(1)
    assert (entry.who, entry.action, entry.subject) == ("admin (admin)", "call erased", "call-1")


async def test_latency_and_workers_are_told(admin: Browser, call: None, redis: Redis) -> None:
    page = (await admin.get("/admin/latency")).text
    assert '<th scope="row">whole' in page
    assert "Calls by phone" in page
    assert "No worker lives" in (await admin.get("/admin/workers")).text
    await WorkerRegistry(redis, expiry_s=60).beat(Heartbeat("w<1>", "e", "ws://127.0.0.1:1", {"nano": (4, 1)}, False))
    await BridgeRegistry(redis, expiry_s=60).beat("b1", "webrtc", 2, 10)
    page = (await admin.get("/admin/workers")).text
    assert "w&lt;1&gt;" in page
    assert "1 of 4 slots of nano taken" in page
    assert "2 of 10 calls" in page


async def test_a_key_is_shown_once_serves_and_is_revoked(admin: Browser, store: Store) -> None:
    token = (await admin.get("/admin/keys")).form_token
    made = await admin.post("/admin/keys", {"form_token": token, "name": "<dialler>", "scope": [
        "calls:read", "calls:everything"]})
    key = made.text.split('id="key" tabindex="0">')[1].split("<")[0]
    row = await ApiKeys(store).found(key)
    assert row is not None
    assert row.scopes == (Scope.READ,)
    assert key not in (await admin.get("/admin/keys")).text
    for bad in ({"name": "x"}, {"scope": "calls:read"}):
        refused = await admin.post("/admin/keys", {"form_token": token, **bad})
        assert refused.status == 422
        assert 'role="alert"' in refused.text
    assert (await admin.post("/admin/keys/revoke", {"form_token": token, "id": row.id})).status == 303
    assert await ApiKeys(store).found(key) is None
    entries = await Audit(store).newest(2)
    assert [(entry.who, entry.action, entry.subject) for entry in entries] == [
        ("admin (admin)", "key revoked", row.id), ("admin (admin)", "key made", row.id)]


async def test_operators_are_made_and_disabled_and_the_last_admin_stays(admin: Browser, port: int) -> None:
    token = (await admin.get("/admin/operators")).form_token
    new = {"form_token": token, "name": "bob", "password": PASSWORD, "role": "operator"}
    assert (await admin.post("/admin/operators", new | {"password": "short"})).status == 422
    assert (await admin.post("/admin/operators", new | {"role": "king"})).status == 422
    assert (await admin.post("/admin/operators", new)).status == 303
    bob = await _signed_in(port, "bob")
    assert (await admin.post("/admin/operators/disable", {"form_token": token, "name": "bob"})).status == 303
    assert (await bob.get("/admin")).status == 303
    assert (await bob.signs_in("bob")).status == 401
    last = await admin.post("/admin/operators/disable", {"form_token": token, "name": "admin"})
    assert last.status == 422
    assert "last admin" in last.text
    audit = (await admin.get("/admin/audit")).text
    for told in ("operator made", "operator disabled", "signed in", "sign-in refused"):
        assert told in audit
    assert PASSWORD not in audit


async def test_without_postgres_a_page_says_so(redis_url: str) -> None:
    async with serving(redis_url) as port:
        answer = await Browser(port, {"tandem_session": "x"}).get("/admin/calls")
        assert answer.status == 503
        assert "This can&#39;t be had just now." in answer.text


# the stream of what happens


@asynccontextmanager
async def _events_of(port: int, cookies: dict[str, str]) -> AsyncIterator[tuple[int, http.client.HTTPResponse]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
    try:
        await asyncio.to_thread(connection.request, "GET", "/admin/events", None, {"Cookie": cookie})
        answer = await asyncio.to_thread(connection.getresponse)
        try:
            yield answer.status, answer
        finally:
            answer.close()
    finally:
        connection.close()


async def _next(stream: http.client.HTTPResponse, *kinds: str) -> dict[str, Any]:
    """The next message of these kinds."""
    while True:
        line = (await asyncio.to_thread(stream.readline)).decode()
        assert line, "the stream has ended"
        if line.startswith("data: ") and (message := json.loads(line[6:]))["type"] in kinds:
            return dict(message)


async def test_the_stream_tells_what_runs_and_then_all_that_happens(admin: Browser, store: Store, redis: Redis) -> None:
    await store.apply(_events(RECEIVED, CallAnswered("PCMU"), _said("hello there", 10, Speaker.AGENT)))
    await store.apply(_events(RECEIVED, CallAnswered("PCMU"), call="left-behind"))
    await ControlInbox(redis, "bridge-1").here(["call-1"], 30)
    writer = EventWriter(redis, "bridge-1", kept_events=100)
    async with _events_of(admin.port, admin.cookies) as (_, stream):
        snapshot = await _next(stream, "snapshot")
        assert [(call["id"], call["utterances"][0]["text"]) for call in snapshot["calls"]] == [
            ("call-1", "hello there")]
        writer.emit("call-1", 1, _said("a table", 40, Speaker.CALLER, final=False))
        writer.emit("call-2", 1, RECEIVED)
        writer.emit("call-1", 1, ControlTaken("c1", "hold", "", True, "bob", AT, "held", 50, 50, ""))
        writer.emit("call-1", 1, ENDED)
        assert await writer.drain(5) == 0
        came = [await _next(stream, "utterance", "received", "control", "ended") for _ in range(4)]
    by_kind = {message["type"]: message for message in came}
    assert (by_kind["utterance"]["call"], by_kind["utterance"]["text"], by_kind["utterance"]["final"]) == (
        "call-1", "a table", False)
    assert (by_kind["received"]["call"], by_kind["received"]["caller"]) == ("call-2", "sip:ann@example.org")
    assert (by_kind["control"]["outcome"], by_kind["control"]["by"]) == ("held", "bob")
    assert by_kind["ended"]["reason"] == "caller_hung_up"


async def test_the_stream_of_who_is_disabled_ends(
        port: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("admin.live.CHECK_S", 0.2)
    viewer = await _signed_in(port, "viewer")
    async with _events_of(port, viewer.cookies) as (_, stream):
        assert (await _next(stream, "running"))["calls"] == []
        await Operators(store).disable("viewer")
        assert (await _next(stream, "signed_out"))["type"] == "signed_out"
        assert await asyncio.to_thread(stream.read) == b"\n"


async def test_an_operator_acts_in_their_own_name_and_each_deed_is_audited(
        port: int, store: Store, redis: Redis) -> None:
    operator, inbox = await _signed_in(port, "operator"), ControlInbox(redis, "bridge-1")
    await inbox.here(["call-1"], 30)
    token = (await operator.get("/admin")).form_token
    answer = await operator.send("/admin/calls/call-1/controls", {"action": "say", "text": "hello", "id": "mine"},
                                 X_Form_Token=token)
    assert (answer.status, answer.json) == (202, {"id": "mine", "result": None})
    control = await inbox.next()
    assert control is not None
    assert (control.by, control.action, control.text) == ("operator", "say", "hello")
    await inbox.reply(control, Result("mine", "said", 1, 2))
    bad = await operator.send("/admin/calls/call-1/controls", {"action": "explode"}, X_Form_Token=token)
    assert (bad.status, bad.json["error"]) == (422, "bad_control")
    [entry] = await Audit(store).newest(1)
    assert (entry.who, entry.action, entry.subject, entry.detail) == ("operator (operator)", "say", "call-1", "hello")
