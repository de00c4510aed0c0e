"""The pages of agents, numbers and telephony: what is typed there is what bridges get."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Browser
from told_edge import NAME, answering, ban, says
from web_role import serving

from calls.audit import Audit
from calls.configuration import published
from calls.dialling import Answer, DialInbox
from calls.operators import Operators, Role
from calls.retention_store import RetentionStore
from calls.routing import BridgeRegistry
from calls.store import Store
from calls.telephony_published import TrunkState, read, tell_states

RULES = '[{"when": "silence", "after_s": 20, "do": "say", "text": "Are you still <there>?"}]'


@pytest.fixture
async def admin(redis_url: str, redis: Redis, store: Store, database_url: str) -> AsyncIterator[Browser]:
    for role in Role:
        await Operators(store).make(role.value, PASSWORD, role)
    async with serving(redis_url, database_url) as port:
        browser = Browser(port)
        await browser.signs_in("admin")
        yield browser


async def test_an_agent_is_made_changed_given_a_number_and_removed(admin: Browser, redis: Redis, store: Store) -> None:
    token = (await admin.get("/admin/agents")).form_token
    made = await admin.post("/admin/agents", {"form_token": token, "name": "night", "model": "nano"})
    assert (made.status, made.headers["location"]) == (303, "/admin/agents/night")
    again = await admin.post("/admin/agents", {"form_token": token, "name": "night", "model": "nano"})
    assert again.status == 409
    form = {"form_token": token, "model": "nano", "greeting": "Good night.", "rules": RULES, "longest_call_s": "600",
            "pad_bias": "-0.5", "recorded": "1"}
    assert (await admin.post("/admin/agents/night", form)).status == 303
    [night] = (await published(redis)).agents
    assert (night.greeting, night.longest_call_s, night.sampling.pad_bias, night.recorded) == (
        "Good night.", 600, -0.5, True)
    assert night.rules[0].text == "Are you still <there>?"
    page = (await admin.get("/admin/agents/night")).text
    assert "Are you still &lt;there&gt;?" in page
    assert night.public_key in page
    for bad, said in (({"rules": "[{"}, "The rules isn&#39;t JSON: line 1, column 3"),
                      ({"rules": '[{"when": "never", "do": "say"}]'}, "when"),
                      ({"longest_call_s": "soon"}, "longest_call_s")):
        refused = await admin.post("/admin/agents/night", form | bad)
        assert refused.status == 422
        assert said in refused.text
        assert "Good night." in refused.text, "what was typed is still there"

    number = {"form_token": token, "pattern": "+4930*", "agent": "night"}
    assert (await admin.post("/admin/numbers", number)).status == 303
    assert (await admin.post("/admin/numbers", number | {"pattern": "a b"})).status == 422
    assert (await published(redis)).called("+49301").name == "night"
    held = await admin.post("/admin/agents/night/remove", {"form_token": token})
    assert held.status == 409
    assert (await admin.post("/admin/numbers/remove", {"form_token": token, "pattern": "+4930*"})).status == 303
    await admin.post("/admin/agents/night/public-key", {"form_token": token})
    assert (await published(redis)).agents[0].public_key != night.public_key
    assert (await admin.post("/admin/agents/night/remove", {"form_token": token})).status == 303
    assert (await admin.get("/admin/agents/night")).status == 404
    assert [entry.action for entry in reversed(await Audit(store).newest()) if entry.who == "admin (admin)"][1:] == [
        "agent made", "agent changed", "number changed", "number removed", "agent's public key changed",
        "agent removed"]


async def test_the_telephony_document_is_shown_without_its_passwords_and_saved_over_the_version_that_was_seen(
        admin: Browser, redis: Redis) -> None:
    document = {"trunks": [{"name": "carrier", "host": "sip.carrier.example", "user": "me", "password": "open sesame"}]}
    page = await admin.get("/admin/telephony")
    form = {"form_token": page.form_token, "version": "0", "document": json.dumps(document)}
    assert (await admin.post("/admin/telephony", form)).status == 303
    await tell_states(redis, "sip-1", [TrunkState("carrier", "sip-1", "refused", 403, "Wrong <password>", 30.0, 4e9)])
    page = await admin.get("/admin/telephony")
    assert "open sesame" not in page.text
    assert "Wrong &lt;password&gt;" in page.text
    shown = re.search(r"<textarea[^>]*>(.*?)</textarea>", page.text, re.DOTALL)
    assert shown
    kept = json.loads(html.unescape(shown[1]))
    assert kept["trunks"][0]["password"] == "(hidden)"
    outdated = await admin.post("/admin/telephony", form | {"document": json.dumps(kept)})
    assert outdated.status == 412
    assert "Somebody was faster" in outdated.text
    kept["outbound"]["destinations"] = ["+49*@sip.carrier.example"]
    saved = await admin.post("/admin/telephony", form | {"version": "1", "document": json.dumps(kept)})
    assert saved.status == 303
    there = await read(redis)
    assert there is not None
    assert (there.number, there.document.outbound.destinations) == (2, ("+49*@sip.carrier.example",))
    wrong = await admin.post("/admin/telephony", form | {"document": '{"trunks": 1}'})
    assert wrong.status == 422
    assert "{&#34;trunks&#34;: 1}" in wrong.text


async def test_an_operator_has_a_call_made_once(admin: Browser, redis: Redis, store: Store) -> None:
    operator = Browser(admin.port)
    await operator.signs_in("operator")
    await BridgeRegistry(redis, expiry_s=60).beat("sip-1", "sip", 0, 4)
    page = await operator.get("/admin/telephony")
    assert 'name="version"' in page.text
    assert ">Save<" not in page.text
    form = {"form_token": page.form_token, "to": "+4930123", "agent": "agent", "once": "this page"}
    placing = asyncio.create_task(operator.post("/admin/telephony/calls", form))
    inbox = DialInbox(redis, "sip-1")
    dial = None
    while dial is None:
        dial = await inbox.next()
    assert (dial.to, dial.agent, dial.by) == ("+4930123", "agent", "operator")
    await inbox.reply(Answer(dial.call))
    placed = await placing
    assert (placed.status, placed.headers["location"]) == (303, f"/admin#{dial.call}")
    again = await operator.post("/admin/telephony/calls", form)
    assert again.headers["location"] == placed.headers["location"]
    [entry] = await Audit(store).newest(1)
    assert (entry.who, entry.action, entry.detail) == ("operator (operator)", "call placed", "+4930123")


async def test_bans_are_shown_and_an_admin_lets_somebody_in_again(admin: Browser, redis: Redis, store: Store) -> None:
    page = await admin.get("/admin/telephony")
    assert "No edge is there" in page.text
    await says(redis)
    assert "Nobody is banned" in (await admin.get("/admin/telephony")).text
    await says(redis, count=5000)
    assert "5,000 addresses are banned" in (await admin.get("/admin/telephony")).text
    banned, lift = ban("192.0.2.1", "unacknowledged"), "Let 192.0.2.1 in again"
    async with answering(redis, banned) as left:
        shown = (await admin.get("/admin/telephony")).text
        for told in ("<td data-label=\"Address\">192.0.2.1<", "calls never acknowledged", banned.since.isoformat(),
                     banned.until.isoformat(), NAME, lift):
            assert told in shown, told
        viewer = Browser(admin.port)
        await viewer.signs_in("viewer")
        seen = await viewer.get("/admin/telephony")
        assert "192.0.2.1" in seen.text
        assert lift not in seen.text
        form = {"address": "192.0.2.1"}
        assert (await viewer.post("/admin/telephony/bans/lift", form | {"form_token": seen.form_token})).status == 403
        assert left
        form["form_token"] = page.form_token
        assert (await admin.post("/admin/telephony/bans/lift", form)).status == 303
        assert not left
        again = await admin.post("/admin/telephony/bans/lift", form)
        assert (again.status, "No edge has banned 192.0.2.1." in again.text) == (404, True)
        assert (await admin.post("/admin/telephony/bans/lift", form | {"address": "all"})).status == 422
    assert [(entry.action, entry.subject) for entry in await Audit(store).newest(1)] == [("ban lifted", "192.0.2.1")]


async def test_a_webhook_is_made_tried_switched_off_and_removed(admin: Browser, store: Store) -> None:
    token = (await admin.get("/admin/webhooks")).form_token
    refused = await admin.post("/admin/webhooks", {"form_token": token, "url": "https://hook.example/<x>"})
    assert refused.status == 422
    assert "https://hook.example/&lt;x&gt;" in refused.text
    made = await admin.post("/admin/webhooks", {"form_token": token, "url": "https://hook.invalid/x", "event": [
        "call.ended"]})
    secret = re.search(r'id="secret" tabindex="0">([^<]+)<', made.text)
    assert secret
    found = re.search(r'action="(/admin/webhooks/[^/"]+)"', made.text)
    assert found
    there = found[1]
    assert secret[1] not in (await admin.get(there)).text
    tried = await admin.post(f"{there}/test", {"form_token": token})
    page = await admin.get(tried.headers["location"])
    assert "<h1>ping</h1>" in page.text
    assert (await admin.post(f"{tried.headers['location']}/replay", {"form_token": token})).status == 303
    assert "ping" in (await admin.get(there)).text
    assert "None is delivered." in (await admin.get(f"{there}?state=delivered")).text
    off = {"form_token": token, "url": "https://hook.invalid/y", "event": ["call.ended"]}
    assert (await admin.post(there, off)).status == 303
    assert ">off<" in (await admin.get("/admin/webhooks")).text
    again = await admin.post(f"{there}/secret", {"form_token": token})
    assert 'id="secret"' in again.text
    assert secret[1] not in again.text
    assert (await admin.post(f"{there}/remove", {"form_token": token})).status == 303
    assert (await admin.get(there)).status == 404


async def test_retention_is_saved_and_what_cant_be_meant_stays_typed(admin: Browser, store: Store) -> None:
    page = await admin.get("/admin/retention")
    assert "all calls are kept" in page.text
    form = {"form_token": page.form_token, "calls_days": "365", "recordings_days": "30", "card_numbers": "1",
            "patterns": "iban: \\mde\\d{20}\\M\n\nmail: [a-z:]+@"}
    assert (await admin.post("/admin/retention", form)).status == 303
    rules = (await RetentionStore(store).newest()).rules
    assert (rules.calls_days, rules.recordings_days, rules.token_logs_days, rules.card_numbers) == (365, 30, None, True)
    assert [(each.name, each.regex) for each in rules.patterns] == [("iban", "\\mde\\d{20}\\M"), ("mail", "[a-z:]+@")]
    shown = (await admin.get("/admin/retention")).text
    assert 'name="calls_days" value="365"' in shown
    assert "mail: [a-z:]+@" in shown
    for bad in ({"calls_days": "0"}, {"patterns": "iban"}, {"patterns": "iban: ("}):
        refused = await admin.post("/admin/retention", form | bad)
        assert refused.status == 422, bad
        assert html.escape(next(iter(bad.values()))) in refused.text
    assert [entry.action for entry in await Audit(store).newest(1)] == ["retention changed"]
