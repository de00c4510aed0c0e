"""Webhooks: made over the API, told what happens, signed, until it is taken."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_client import Api
from redis.asyncio import Redis
from sqlalchemy import update
from web_role import SECRET, serving
from webhook_receiver import receiving

from calls.api_keys import ApiKeys, Scope
from calls.audit import Audit
from calls.events import (
    CallAnswered,
    CallEnded,
    CallReceived,
    EndReason,
    Envelope,
    Event,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.sealing import MARK
from calls.store import Store
from calls.tables import WebhookDelivery
from calls.webhook_store import WebhookStore
from calls.webhooks import ATTEMPTS, DELAYS_S, Attempt, EventType, WebhookSettings, now

AT = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
RECEIVED = CallReceived("sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "b", "agent")
SAID = UtteranceSpoken(Speaker.CALLER, 10, 11, (Word("Grüße", 10, 11, 0.8, 0.96),), final=True)
ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 100, 0, 0, 0)
ALL = [event.value for event in EventType]


def events(*events: Event, call: str = "call-1") -> list[Envelope]:
    return [Envelope(call, "b", 1, at, AT, event) for at, event in enumerate(events, 1)]


@pytest.fixture
async def web(redis_url: str, redis: Redis, store: Store, database_url: str) -> AsyncIterator[Api]:
    """A web role that may tell programs on this machine."""
    keys = {name: (await ApiKeys(store).make(name, scopes))[1] for name, scopes in (
        ("all", tuple(Scope)), ("configures", (Scope.CONFIGURE,)), ("both", (Scope.READ, Scope.CONTROL)))}
    async with serving(redis_url, database_url, webhook_networks="127.0.0.0/8") as port:
        yield Api(port, keys)


async def made(api: Api, url: str, *events: str) -> dict[str, Any]:
    answer = await api.ask("/webhooks", {"url": url, "events": list(events) or ALL}, key="all")
    assert answer.status == 201, answer.body
    return dict(answer.body)


async def log(api: Api, id: str, number: int) -> dict[str, Any]:
    return dict((await api.ask(f"/webhooks/{id}/deliveries/{number}", key="all")).body)


async def until(api: Api, id: str, state: str, *, attempts: int = 0) -> dict[str, Any]:
    """Its newest delivery, when it is so."""
    async with asyncio.timeout(10):
        while True:
            rows = (await api.ask(f"/webhooks/{id}/deliveries", key="all")).body["deliveries"]
            if rows and rows[0]["state"] == state and len((await log(api, id, rows[0]["id"]))["attempts"]) >= attempts:
                return dict(rows[0])
            await asyncio.sleep(0.02)


async def due(store: Store) -> None:
    async with store.transaction() as connection:
        pending = update(WebhookDelivery).where(WebhookDelivery.state == "pending")
        await connection.execute(pending.values(next_at=now()))


def documented() -> Any:
    """What docs/webhooks.md tells programs to do."""
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["is_ours"]


async def test_events_are_told_once_to_whom_wants_them_and_known_to_be_ours(web: Api, store: Store) -> None:
    is_ours = documented()
    async with receiving() as receiver:
        hook = await made(web, receiver.url, "call.ended", "call.utterance")
        told = events(RECEIVED, CallAnswered("PCMU"), SAID, ENDED)
        await store.apply(told)
        await store.apply(told)  # a persister that died before it said so does it again
        came = {json.loads(one.body)["type"]: one for one in (await receiver.next(), await receiver.next())}
        assert set(came) == {"call.ended", "call.utterance"}
        assert json.loads(came["call.utterance"].body)["data"] == {
            "call": "call-1", "speaker": "caller", "first_k": 10, "last_k": 11, "start_s": 0.8, "end_s": 0.96,
            "text": "Grüße"}
        call = json.loads(came["call.ended"].body)["data"]["call"]
        assert (call["id"], call["state"], call["end_reason"], call["codec"]) == (
            "call-1", "ended", "caller_hung_up", "PCMU")
        one = came["call.ended"]
        assert one.headers[""] == "POST /hook?x=1 HTTP/1.1"
        assert is_ours(hook["secret"], one.headers, one.body)
        assert not is_ours(hook["secret"], one.headers, one.body + b" ")
        assert not is_ours(hook["secret"], one.headers | {"webhook-timestamp": "1700000000"}, one.body)
        assert not is_ours("whsec_" + "A" * 32, one.headers, one.body)
        await until(web, hook["id"], "delivered")
        assert receiver.came.empty()
        listed = (await web.ask(f"/webhooks/{hook['id']}/deliveries?state=delivered", key="all")).body["deliveries"]
        assert {row["event"] for row in listed} == {"call-1:ended", "call-1:utterance:caller:10"}


async def test_a_new_secret_signs_beside_the_one_before_and_neither_can_be_read(web: Api, store: Store) -> None:
    async with receiving() as receiver:
        hook = await made(web, receiver.url)
        secret = (await web.ask(f"/webhooks/{hook['id']}/secret", {}, key="all")).body["secret"]
        await web.ask(f"/webhooks/{hook['id']}/test", {}, key="all")
        came = await receiver.next()
    assert json.loads(came.body)["type"] == "ping"
    for each in (secret, hook["secret"]):
        assert documented()(each, came.headers, came.body)
    async with store.transaction() as connection:
        kept = str((await connection.exec_driver_sql("SELECT * FROM webhooks")).all())
    assert MARK in kept
    assert secret not in kept
    assert secret not in str((await web.ask("/webhooks", key="all")).body)


async def test_what_isnt_taken_is_tried_again_later_and_may_be_sent_again_by_hand(web: Api, store: Store) -> None:
    gone_elsewhere = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    fails = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"
    async with receiving(fails, gone_elsewhere, b"rubbish\r\n\r\n") as receiver:
        id = (await made(web, receiver.url, "call.ended"))["id"]
        await store.apply(events(RECEIVED, ENDED))
        first = await receiver.next()
        row = await until(web, id, "pending", attempts=1)
        wait_s = (datetime.fromisoformat(row["next_at"]) - now()).total_seconds()
        assert 0 < wait_s <= 1.2 * DELAYS_S[0]
        for attempts in (2, 3):
            await due(store)
            await receiver.next()
            await until(web, id, "pending", attempts=attempts)
        await due(store)
        assert (await receiver.next()).headers["webhook-id"] == first.headers["webhook-id"]
        row = await until(web, id, "delivered", attempts=4)
        told = await log(web, id, row["id"])
        assert [(one["number"], one["status"]) for one in told["attempts"]] == [(1, 500), (2, 302), (3, None), (4, 204)]
        assert told["attempts"][2]["error"].startswith("answers no HTTP")
        assert told["body"] == first.body.decode()

        assert (await web.ask(f"/webhooks/{id}/deliveries/{row['id']}/replay", {}, key="all")).status == 202
        again = await receiver.next()
        assert (again.headers["webhook-id"], again.body) == (first.headers["webhook-id"], first.body)
        await until(web, id, "delivered", attempts=5)


async def test_what_happens_while_no_web_role_runs_and_what_a_dead_one_had_in_hand_is_told(
        redis_url: str, redis: Redis, store: Store, database_url: str) -> None:
    webhooks = WebhookStore(store, SECRET)
    async with receiving() as receiver:
        await webhooks.make(WebhookSettings(url=receiver.url, events=(EventType.ENDED,)))
        await store.apply(events(RECEIVED, ENDED))
        assert len(await webhooks.claim()) == 1  # by a sender that dies here
        assert await webhooks.claim() == ()
        await store.apply(events(RECEIVED, ENDED, call="call-2"))
        async with serving(redis_url, database_url, webhook_networks="127.0.0.0/8"):
            assert (await receiver.next()).headers["webhook-id"] == "call-2:ended"
            await due(store)  # its lease is over
            assert (await receiver.next()).headers["webhook-id"] == "call-1:ended"


async def test_a_delivery_is_given_up_after_its_last_attempt_or_when_nobody_wants_it_any_more(store: Store) -> None:
    webhooks = WebhookStore(store, SECRET)
    hook, _ = await webhooks.make(WebhookSettings(url="https://hooks.example", events=(EventType.ENDED,)))
    for status in (503, 410):
        await webhooks.ping(hook.id)
        states = []
        while claimed := await webhooks.claim():
            [one] = claimed
            states.append(await webhooks.tried(one, Attempt(one.attempts, now(), status, "", 0.1)))
            await due(store)
        assert states == (["pending"] * (ATTEMPTS - 1) + ["failed"] if status == 503 else ["failed"])


async def test_an_erased_call_is_told_nobody_and_one_webhook_that_hangs_leaves_room_for_others(store: Store) -> None:
    webhooks = WebhookStore(store, SECRET)
    for name in ("slow", "other"):
        await webhooks.make(WebhookSettings(url=f"https://{name}.example", events=(EventType.ENDED,)))
    for number in range(20):
        await store.apply(events(RECEIVED, ENDED, call=f"call-{number}"))
    claimed = await webhooks.claim()
    assert sorted(one.url for one in claimed) == ["https://other.example"] * 4 + ["https://slow.example"] * 4
    async with store.transaction() as connection:
        await connection.exec_driver_sql("DELETE FROM calls")
    assert await webhooks.claim() == ()
    assert await webhooks.tried(claimed[0], Attempt(1, now(), 200, "", 0.1)) == "delivered"  # and nothing breaks


async def test_a_webhook_is_changed_switched_off_and_removed_and_the_audit_tells(web: Api, store: Store) -> None:
    async with receiving() as receiver:
        hook = await made(web, receiver.url, "call.ended")
        path = f"/webhooks/{hook['id']}"
        off = {"url": receiver.url, "events": ["call.ended"], "enabled": False}
        assert (await web.put(path, off, key="all")).body["disabled_why"] == "switched off"
        await web.ask(f"{path}/test", {}, key="all")
        assert (await web.put(path, off | {"enabled": True}, key="all")).body["enabled"] is True
        assert json.loads((await receiver.next()).body)["type"] == "ping"
    assert (await web.ask(path, key="both")).status == 403
    assert (await web.ask("/webhooks", off, key="both")).status == 403
    assert (await web.ask(f"{path}/deliveries/1", key="configures")).status == 403
    assert (await web.delete(path, key="all")).status == 204
    assert (await web.ask(path, key="all")).status == (await web.ask(f"{path}/deliveries", key="all")).status == 404
    assert [entry.action for entry in await Audit(store).newest()] == [
        "webhook removed", "webhook changed", "webhook changed", "webhook made"]
    for wrong, named in (
            ({"url": "ftp://x.example", "events": ALL}, "url"), ({"url": "https://:1", "events": ALL}, "Url"),
            ({"url": "https://a:b@x.example", "events": ALL}, "Url"), ({"url": "https://x.example"}, "events"),
            ({"url": "https://x.example", "events": ["call.begun"]}, "events.0")):
        answer = await web.ask("/webhooks", wrong, key="all")
        assert (answer.status, answer.body["message"].split(":")[0]) == (422, named)


async def test_our_own_network_isnt_reached_unless_it_is_named(
        redis_url: str, redis: Redis, store: Store, database_url: str) -> None:
    _, key = await ApiKeys(store).make("all", tuple(Scope))
    async with serving(redis_url, database_url) as port, receiving() as receiver:
        api = Api(port, {"all": key})
        for host in ("127.0.0.1", "localhost"):
            id = (await made(api, receiver.url.replace("127.0.0.1", host)))["id"]
            await api.ask(f"/webhooks/{id}/test", {}, key="all")
            row = await until(api, id, "pending", attempts=1)
            [attempt] = (await log(api, id, row["id"]))["attempts"]
            assert (attempt["status"], "TANDEM_WEBHOOK_NETWORKS" in attempt["error"]) == (None, True)
        assert receiver.came.empty()


async def test_old_deliveries_are_forgotten_and_a_webhook_that_takes_nothing_is_switched_off(
        store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calls.webhook_store.MOST_PENDING", 2)
    webhooks = WebhookStore(store, SECRET)
    hook, _ = await webhooks.make(WebhookSettings(url="https://hooks.example", events=(EventType.ENDED,)))
    old = await webhooks.ping(hook.id)
    async with store.transaction() as connection:
        await connection.execute(update(WebhookDelivery).values(state="failed", created_at=now() - timedelta(days=31)))
    for _ in range(3):
        await webhooks.ping(hook.id)
    await webhooks.tidy()
    assert await webhooks.delivery(hook.id, old) is None
    [hook] = await webhooks.all()
    assert (hook.enabled, hook.disabled_why) == (False, "more than 2 deliveries waited")
