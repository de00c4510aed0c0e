"""Listening and taking over by the web role: a real WebRTC process with a call, its worker an echo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from signed_in import PASSWORD, Browser
from web_bench import WebBench, running
from web_peer import on_loopback, wait_for
from web_role import serving

from calls.audit import Audit
from calls.events import ControlTaken
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


async def _listens(bench: WebBench, browser: Browser, token: str, call: str) -> str:
    """The connection's id, connected."""
    peer = bench.peer()
    begun = await browser.send(f"/admin/calls/{call}/listeners", {"sdp": await peer.offer()}, X_Form_Token=token)
    assert begun.status == 201
    await peer.take(begun.json["sdp"])
    await peer.connected()
    return str(begun.json["tap"])


async def test_an_operator_listens_takes_over_and_hands_back(port: int, bench: WebBench, store: Store) -> None:
    call = await bench.call(bench.peer())
    taps = bench.web_call(call).session.taps
    ann, token = await _operator(port, store, "ann")
    [server] = (await ann.get("/admin/ice-servers")).json
    assert server["urls"] == ["turn:turn.example"]
    assert server["username"].endswith(":operator")
    tap = await _listens(bench, ann, token, call)
    assert (await ann.send(f"/admin/listeners/{tap}", {}, X_Form_Token=token)).status == 204
    given = {"action": "take_over", "tap": tap}
    assert (await ann.send(f"/admin/calls/{call}/controls", given, X_Form_Token=token)).status == 202
    await wait_for(lambda: taps.talker == "ann")
    assert (await ann.send(f"/admin/calls/{call}/controls", {"action": "hand_back"}, X_Form_Token=token)).status == 202
    await wait_for(lambda: not taps.talker)
    assert await _audited(store, call) == [("ann (operator)", "listen"), ("ann (operator)", "take_over"),
                                           ("ann (operator)", "hand_back")]


async def test_of_two_operators_one_talks_and_the_audit_has_both(port: int, bench: WebBench, store: Store) -> None:
    call = await bench.call(bench.peer())
    taps = bench.web_call(call).session.taps
    (ann, anns), (bob, bobs) = [await _operator(port, store, name) for name in ("ann", "bob")]
    of_ann, of_bob = await _listens(bench, ann, anns, call), await _listens(bench, bob, bobs, call)
    assert (await bob.send(f"/admin/listeners/{of_ann}", {}, X_Form_Token=bobs)).status == 404, "it isn't his"
    controls = f"/admin/calls/{call}/controls"
    answers = await asyncio.gather(
        ann.send(controls, {"action": "take_over", "tap": of_ann, "id": "anns"}, X_Form_Token=anns),
        bob.send(controls, {"action": "take_over", "tap": of_bob, "id": "bobs"}, X_Form_Token=bobs),
        bob.send(controls, {"action": "take_over", "tap": of_ann, "id": "stolen"}, X_Form_Token=bobs))
    assert [answer.status for answer in answers] == [202] * 3
    taken: dict[str, ControlTaken] = {}
    async with asyncio.timeout(5):
        while not {"anns", "bobs", "stolen"} <= set(taken):
            taken = {each.event.id: each.event for each in await bench.events(call)
                     if isinstance(each.event, ControlTaken)}
            await asyncio.sleep(0.02)
    talker = {"ann": "anns", "bob": "bobs"}.pop(taps.talker)
    [other] = {"anns", "bobs"} - {talker}
    assert taken[talker].outcome == "talking"
    assert (taken[other].outcome, taken[other].why) == ("refused", f"{taps.talker} talks to the caller")
    assert (taken["stolen"].outcome, taken["stolen"].why) == ("refused", "listen to the call first")
    assert sorted(await _audited(store, call)) == [
        ("ann (operator)", "listen"), ("ann (operator)", "take_over"), ("bob (operator)", "listen"),
        ("bob (operator)", "take_over"), ("bob (operator)", "take_over")]


async def _audited(store: Store, call: str) -> list[tuple[str, str]]:
    return [(entry.who, entry.action) for entry in reversed(await Audit(store).newest()) if entry.subject == call]


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
