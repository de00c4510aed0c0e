"""Agents and numbers over the API: who may, what is kept, what the bridges get, what the audit tells."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest
from api_client import Api
from redis.asyncio import Redis
from web_role import serving

from admin.configuring import CHECK_S
from calls.api_keys import ApiKeys, Scope
from calls.audit import Audit
from calls.configuration import KEY, published
from calls.store import Store

NIGHT = {"model": "nano", "greeting": "Good evening.", "longest_call_s": 600,
         "rules": [{"when": "silence", "after_s": 20, "do": "say", "text": "Are you there?"}],
         "sampling": {"text_temperature": 0.5, "seed": 7}}


async def test_before_anybody_changes_them_agents_are_the_settings_own(api: Api) -> None:
    found = (await api.ask("/agents", key="reads")).body
    assert [(agent["name"], agent["model"]) for agent in found["agents"]] == [("agent", "nano"), ("echo", "echo")]
    assert (found["version"], found["next"]) == (0, None)


async def test_an_agent_is_made_changed_and_removed_and_bridges_get_each_version(api: Api, redis: Redis) -> None:
    made = await api.put("/agents/night", NIGHT)
    assert made.status == 200
    assert made.body["greeting"] == "Good evening."
    assert made.body["public_key"].startswith("pk_")
    assert (await published(redis)).by_name["night"].sampling.seed == 7
    changed = (await api.put("/agents/night", {**NIGHT, "greeting": "Good night."})).body
    assert changed["public_key"] == made.body["public_key"]
    there = await published(redis)
    assert (there.version, there.by_name["night"].greeting) == (2, "Good night.")
    assert (await api.ask("/agents/night")).body == changed
    assert (await api.delete("/agents/night")).status == 204
    assert (await api.ask("/agents/night")).status == 404
    assert (await published(redis)).agents == ()


async def test_the_settings_agent_can_be_changed_and_comes_back_when_the_change_is_removed(api: Api) -> None:
    await api.put("/agents/agent", NIGHT)
    assert (await api.ask("/agents/agent")).body["greeting"] == "Good evening."
    assert (await api.delete("/agents/agent")).status == 204
    assert (await api.ask("/agents/agent")).body["greeting"] == ""


async def test_numbers_reach_agents_and_hold_them(api: Api, redis: Redis) -> None:
    await api.put("/agents/night", NIGHT)
    number = f"/numbers/{quote('+49*')}"
    assert (await api.put(number, {"agent": "night"})).body == {"pattern": "+49*", "agent": "night"}
    assert (await published(redis)).called("+4930").name == "night"
    assert (await api.ask("/numbers")).body["numbers"] == [{"pattern": "+49*", "agent": "night"}]
    held = await api.delete("/agents/night")
    assert (held.status, held.body["error"]) == (409, "conflict")
    assert "+49*" in held.body["message"]
    assert (await api.put("/numbers/1", {"agent": "nobody"})).status == 409
    assert (await api.delete(number)).status == 204
    assert (await api.delete(number)).status == 404


async def test_pages_go_on_where_the_one_before_ended(api: Api) -> None:
    for number in ("1", "2", "3"):
        await api.put(f"/numbers/{number}", {"agent": "echo"})
    first = (await api.ask("/numbers?limit=2")).body
    assert [one["pattern"] for one in first["numbers"]] == ["1", "2"]
    rest = (await api.ask(f"/numbers?limit=2&cursor={first['next']}")).body
    assert ([one["pattern"] for one in rest["numbers"]], rest["next"]) == (["3"], None)


@pytest.mark.parametrize(("path", "body", "said"), [
    ("/agents/night", {}, "model"), ("/agents/night", {**NIGHT, "colour": "red"}, "colour"),
    ("/agents/night", {**NIGHT, "public_key": "pk_mine"}, "public_key"), ("/agents/a%20b", NIGHT, "name"),
    ("/agents/night", {**NIGHT, "rules": [{"when": "time", "do": "speak"}]}, "after_s"),
    ("/numbers/a%20b", {"agent": "echo"}, "pattern"), ("/numbers/1", {"agent": 1}, "agent"), ("/numbers/1", [], "body"),
])
async def test_what_cant_be_meant_is_refused_in_one_line_that_names_it(api: Api, path: str, body: object, said: str
                                                                       ) -> None:
    answer = await api.put(path, body)
    assert (answer.status, answer.body["error"]) == (422, "bad_request")
    assert said in answer.body["message"]
    assert "\n" not in answer.body["message"]


async def test_only_a_key_with_the_scope_changes_anything_and_each_change_is_in_the_audit(api: Api, store: Store
                                                                                          ) -> None:
    for key in ("both", "erases"):
        assert (await api.put("/agents/night", NIGHT, key=key)).status == 403
        assert (await api.delete("/agents/night", key=key)).status == 403
        assert (await api.put("/numbers/1", {"agent": "echo"}, key=key)).status == 403
    assert await Audit(store).newest() == ()
    await api.put("/agents/night", NIGHT)
    await api.put("/agents/night", {**NIGHT, "recorded": False})
    await api.put("/numbers/1", {"agent": "night"})
    entries = [(entry.who, entry.action, entry.subject) for entry in await Audit(store).newest()]
    assert entries == [("configures (key)", "number changed", "1"), ("configures (key)", "agent changed", "night"),
                       ("configures (key)", "agent made", "night")]
    assert [entry.detail for entry in await Audit(store).newest()][1] == "recorded: false"


async def test_a_redis_that_came_back_empty_or_outlived_its_postgres_has_the_newest_again(
        redis_url: str, redis: Redis, store: Store, database_url: str) -> None:
    _, key = await ApiKeys(store).make("configures", (Scope.READ, Scope.CONFIGURE))
    async with serving(redis_url, database_url) as port:
        api = Api(port, {"configures": key})
        await api.put("/agents/night", NIGHT)
        for lost in (redis.delete(KEY), redis.xadd(KEY, {"snapshot": '{"version": 90}'}, id="90-0")):
            await lost
            async with asyncio.timeout(3 * CHECK_S):
                while "night" not in (await published(redis)).by_name:
                    await asyncio.sleep(0.02)
    assert (await published(redis)).version == 91
