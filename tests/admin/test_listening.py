"""Listening and taking over by the web role: a real WebRTC process with a call, its worker an echo."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Browser
from web_bench import WebBench, running
from web_peer import on_loopback, wait_for
from web_role import serving

from calls.audit import Audit
from calls.operators import Operators, Role
from calls.store import Store


@pytest.fixture
async def bench(redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                ) -> AsyncIterator[WebBench]:
    on_loopback(monkeypatch)
    async with running(redis, redis_url, tmp_path) as bench:
        yield bench


@pytest.fixture
async def port(bench: WebBench, redis_url: str, store: Store, database_url: str) -> AsyncIterator[int]:
    async with serving(redis_url, database_url, turn_urls="turn:turn.example", turn_secret="x" * 32) as port:
        yield port


async def _operator(port: int, store: Store, name: str, role: Role = Role.OPERATOR) -> tuple[Browser, str]:
    await Operators(store).make(name, PASSWORD, role)
    browser = Browser(port)
    await browser.signs_in(name)
    return browser, (await browser.get("/admin")).form_token


async def test_an_operator_listens_takes_over_and_hands_back(port: int, bench: WebBench, store: Store) -> None:
    call = await bench.call(bench.peer())
    taps = bench.web_call(call).session.taps
    ann, token = await _operator(port, store, "ann")
    [server] = (await ann.get("/admin/ice-servers")).json
    assert server["urls"] == ["turn:turn.example"]
    assert server["username"].endswith(":operator")
    peer = bench.peer()
    begun = await ann.send(f"/admin/calls/{call}/listeners", {"sdp": await peer.offer()}, X_Form_Token=token)
    assert begun.status == 201
    await peer.take(begun.json["sdp"])
    await peer.connected()
    tap = begun.json["tap"]
    assert (await ann.send(f"/admin/listeners/{tap}", {}, X_Form_Token=token)).status == 204

    bob, bobs = await _operator(port, store, "bob")
    assert (await bob.send(f"/admin/listeners/{tap}", {}, X_Form_Token=bobs)).status == 404, "it isn't his"
    given = {"action": "take_over", "tap": tap}
    assert (await bob.send(f"/admin/calls/{call}/controls", given, X_Form_Token=bobs)).status == 202
    assert (await ann.send(f"/admin/calls/{call}/controls", given | {"id": "mine"}, X_Form_Token=token)).status == 202
    await wait_for(lambda: taps.talker == "ann")
    assert (await ann.send(f"/admin/calls/{call}/controls", {"action": "hand_back"}, X_Form_Token=token)).status == 202
    await wait_for(lambda: not taps.talker)
    assert [(entry.who, entry.action, entry.subject) for entry in reversed(await Audit(store).newest())
            if entry.subject == call] == [
        ("ann (operator)", "listen", call), ("bob (operator)", "take_over", call),
        ("ann (operator)", "take_over", call), ("ann (operator)", "hand_back", call)]


async def test_a_viewer_may_not_listen_and_nobody_to_a_call_that_is_over(
        port: int, bench: WebBench, store: Store) -> None:
    call = await bench.call(bench.peer())
    offer = {"sdp": await bench.peer().offer()}
    vera, token = await _operator(port, store, "vera", Role.VIEWER)
    refused = await vera.send(f"/admin/calls/{call}/listeners", offer, X_Form_Token=token)
    assert (refused.status, refused.json["message"]) == (403, "Your role, viewer, can't act on calls.")
    ann, token = await _operator(port, store, "ann")
    over = await ann.send("/admin/calls/none/listeners", offer, X_Form_Token=token)
    assert (over.status, over.json) == (404, {"error": "not_running", "message": "The call isn't running."})
    assert not bench.bridge._operators
