"""The telephony document and calls that are to be made, over the API."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from api_client import Api
from redis.asyncio import Redis
from told_edge import NAME, answering, ban, says

from calls.audit import Audit
from calls.dialling import Answer, Dial, DialInbox
from calls.routing import BridgeRegistry
from calls.store import Store
from calls.telephony_published import KEY, TrunkState, read, tell_states

TRUNK = {"name": "carrier", "host": "sip.carrier.example", "user": "me", "password": "open sesame", "register": True}
DOCUMENT: dict[str, Any] = {"trunks": [TRUNK], "outbound": {"destinations": ["+49*@sip.carrier.example"]}}


async def test_a_document_is_kept_published_and_shown_without_its_passwords(api: Api, redis: Redis) -> None:
    before = await api.ask("/telephony", key="reads")
    assert (before.status, before.body["version"], before.headers["etag"]) == (200, 0, '"0"')
    saved = await api.put("/telephony", DOCUMENT)
    assert (saved.status, saved.body["version"], saved.body["by"]) == (200, 1, "configures (key)")
    assert saved.body["document"]["trunks"][0]["password"] == "(hidden)"
    there = await read(redis)
    assert there is not None
    assert there.document.unsealed(b"s" * 32).trunks[0].password == "open sesame"
    again = await api.put("/telephony", saved.body["document"] | {"codecs": ["pcma"]})
    assert again.status == 200
    there = await read(redis)
    assert there is not None
    assert there.document.unsealed(b"s" * 32).trunks[0].password == "open sesame"
    assert there.document.codecs == ("pcma",)


async def test_a_change_of_an_outdated_version_is_refused(api: Api) -> None:
    assert (await api.put("/telephony", DOCUMENT, headers={"If-Match": '"0"'})).status == 200
    late = await api.put("/telephony", {}, headers={"If-Match": '"0"'})
    assert (late.status, late.body["error"]) == (412, "outdated")
    assert (await api.put("/telephony", {}, headers={"If-Match": "new"})).status == 412
    assert (await api.ask("/telephony")).body["version"] == 1


@pytest.mark.parametrize(("body", "said"), [
    ({"trunks": [{**TRUNK, "host": "no host"}]}, "trunks.0.host"), ([], "body"),
    ({"trunks": [{**TRUNK, "password": "(hidden)"}]}, "give the password"),
    ({"outbound": {"destinations": ["everybody"]}}, "no pattern"),
])
async def test_what_cant_be_meant_is_refused_in_one_line(api: Api, body: object, said: str) -> None:
    answer = await api.put("/telephony", body)
    assert (answer.status, answer.body["error"]) == (422, "bad_request")
    assert said in answer.body["message"]
    assert "sesame" not in answer.body["message"]


async def test_only_a_key_that_configures_changes_it_and_the_audit_tells_what_without_passwords(
    api: Api, store: Store,
) -> None:
    for key in ("reads", "controls", "erases"):
        assert (await api.put("/telephony", DOCUMENT, key=key)).status == 403
    await api.put("/telephony", DOCUMENT)
    [entry] = await Audit(store).newest()
    assert (entry.who, entry.action, entry.subject) == ("configures (key)", "telephony changed", "version 1")
    assert entry.detail == "outbound, trunk carrier added"


async def test_a_redis_that_came_back_empty_has_the_newest_again(api: Api, redis: Redis) -> None:
    await api.put("/telephony", DOCUMENT)
    await redis.delete(KEY)
    async with asyncio.timeout(10):
        while (there := await read(redis)) is None:
            await asyncio.sleep(0.05)
    assert there.number == 1


async def test_how_trunks_do_is_told(api: Api, redis: Redis) -> None:
    state = TrunkState("carrier", "b-1", "refused", 403, "Forbidden", 30.0, time.time())
    await tell_states(redis, "b-1", [state])
    await tell_states(redis, "b-2", [replace(state, bridge="b-2", at=time.time() - 60)])
    found = (await api.ask("/telephony/trunks", key="reads")).body["trunks"]
    assert [(one["bridge"], one["state"], one["sip_status"], one["next_s"]) for one in found] == [
        ("b-1", "refused", 403, 30.0)]


async def test_bans_are_told_and_lifted_by_who_may_and_the_audit_tells(api: Api, redis: Redis, store: Store) -> None:
    assert (await api.ask("/telephony/bans", key="reads")).body == {"edges": []}
    assert (await api.delete("/telephony/bans/192.0.2.1")).status == 404
    banned = ban("192.0.2.1", "passwords")
    async with answering(redis, banned) as left:
        [edge] = (await api.ask("/telephony/bans", key="reads")).body["edges"]
        assert (edge["edge"], edge["count"]) == (NAME, 1)
        assert edge["bans"] == [{"address": "192.0.2.1", "why": "passwords", "since": banned.since.isoformat(),
                                 "until": banned.until.isoformat()}]
        assert (await api.delete("/telephony/bans/192.0.2.1", key="reads")).status == 403
        assert (await api.delete("/telephony/bans/everybody")).status == 422
        assert left
        assert (await api.delete("/telephony/bans/192.0.2.1")).status == 204
        assert not left
        assert (await api.ask("/telephony/bans", key="reads")).body["edges"][0]["bans"] == []
        assert (await api.delete("/telephony/bans/192.0.2.1")).body["error"] == "not_found"
    assert [(entry.who, entry.action, entry.subject) for entry in await Audit(store).newest()] == [
        ("configures (key)", "ban lifted", "192.0.2.1")]


async def test_an_edge_that_doesnt_answer_leaves_the_ban_and_that_is_said(
        api: Api, redis: Redis, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calls.bans.WAIT_S", 0.2)
    await says(redis, ban("192.0.2.1"))
    refused = await api.delete("/telephony/bans/192.0.2.1")
    assert (refused.status, refused.body["error"], refused.headers["retry-after"]) == (503, "unavailable", "10")
    assert await Audit(store).newest() == ()


class Bridge:
    """A SIP process that makes all calls, or says `error`."""

    def __init__(self, redis: Redis, error: str = "") -> None:
        self._inbox, self._error, self.made = DialInbox(redis, "b-1"), error, list[Dial]()

    async def run(self) -> None:
        while True:
            if (dial := await self._inbox.next()) is not None:
                self.made.append(dial)
                await self._inbox.reply(Answer(dial.call, self._error, "none of the destinations" if self._error else ""
                                               ))  # type: ignore[arg-type]


async def test_a_call_is_placed_once_however_often_it_is_asked_for_with_one_key(api: Api, redis: Redis, store: Store
                                                                                ) -> None:
    await BridgeRegistry(redis, expiry_s=60).beat("b-1", "sip", 0, 4)
    bridge = Bridge(redis)
    running = asyncio.create_task(bridge.run())
    body = {"to": "+4930123", "agent": "sales", "ring_s": 20, "message": "Please call us back."}
    first = await api.ask("/calls", body, key="controls", headers={"Idempotency-Key": "one"})
    again = await api.ask("/calls", body, key="controls", headers={"Idempotency-Key": "one"})
    other = await api.ask("/calls", body | {"to": "+4930124"}, key="controls", headers={"Idempotency-Key": "one"})
    assert (first.status, first.body["repeated"]) == (202, False)
    assert again.body == {"call": first.body["call"], "repeated": True}
    assert (other.status, other.body["error"]) == (409, "conflict")
    [dial] = bridge.made
    assert (dial.to, dial.agent, dial.ring_s, dial.message, dial.by) == (
        "+4930123", "sales", 20, "Please call us back.", "controls")
    assert [(entry.action, entry.subject, entry.detail) for entry in await Audit(store).newest()] == [
        ("call placed", first.body["call"], "+4930123")]
    running.cancel()


async def test_a_call_that_isnt_made_is_refused_and_may_be_asked_for_again(api: Api, redis: Redis) -> None:
    none = await api.ask("/calls", {"to": "1"}, key="controls")
    assert (none.status, none.body["error"], none.headers["retry-after"]) == (503, "unavailable", "10")
    await BridgeRegistry(redis, expiry_s=60).beat("b-1", "sip", 0, 4)
    bridge = Bridge(redis, "not_allowed")
    running = asyncio.create_task(bridge.run())
    for _ in range(2):
        refused = await api.ask("/calls", {"to": "1"}, key="controls", headers={"Idempotency-Key": "two"})
        assert (refused.status, refused.body["message"]) == (403, "None of the destinations.")
    assert len(bridge.made) == 2
    assert (await api.ask("/calls", {"to": "1"}, key="reads")).status == 403
    assert (await api.ask("/calls", {"to": "1", "from": "x"}, key="controls")).status == 422
    running.cancel()


