"""The HTTP side of browser calls; behind it a WebRTC process that the test plays."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis
from web_peer import Http
from web_role import SECRET, serving

from admin.web_calls import BODY_BYTES
from calls.agents import Agent, Configuration, Number
from calls.configuration import publish
from calls.offers import Answer, Inbox, Request
from calls.routing import BridgeRegistry
from calls.web_tokens import WebTokens

SITE_SECRET = "site" * 8
SITES = {
    "pk_shop": {"origins": ["https://shop.example", "https://www.shop.example"], "agents": ["agent", "echo"]},
    "pk_closed": {"origins": ["https://closed.example"], "agents": ["agent"], "secret": SITE_SECRET},
}
SHOP, CLOSED = "https://shop.example", "https://closed.example"
OFFER = "\r\n".join([
    "v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0", "m=audio 9 UDP/TLS/RTP/SAVPF 111",
    "a=mid:0", "a=ice-ufrag:abcd", f"a=ice-pwd:{'p' * 22}", f"a=fingerprint:sha-256 {':'.join(['AB'] * 32)}",
    "a=setup:actpass", "a=rtcp-mux", "a=rtpmap:111 opus/48000/2", ""])


class Played:
    """A WebRTC process as the web role sees it: `answer` is what it says, `asked` what it was asked."""

    def __init__(self, redis: Redis) -> None:
        self.answer = Answer(call="c-1", sdp="the answer", bridge="b-1")
        self.asked: list[Request] = []
        self._redis = redis
        self._inbox = Inbox(redis, "b-1")

    async def run(self) -> None:
        await BridgeRegistry(self._redis, expiry_s=600).beat("b-1", "webrtc", 0, 10)
        while True:
            request = await self._inbox.next()
            if request is not None:
                self.asked.append(request)
                await self._inbox.reply(request, self.answer)


@pytest.fixture
async def bridge(redis: Redis) -> AsyncIterator[Played]:
    played = Played(redis)
    running = asyncio.create_task(played.run())
    while not await redis.exists("tandem:{alive}:bridges"):
        await asyncio.sleep(0.005)
    yield played
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def page(redis: Redis, redis_url: str) -> AsyncIterator[Http]:
    """Requests of the shop's page."""
    async with serving(redis_url, web_sites=SITES, web_requests_per_minute=1000) as port:
        yield Http(port, SHOP)


async def call_token(page: Http, **body: object) -> str:
    status, content, _ = await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": "echo"} | body)
    assert status == 201, content
    return str(content["token"])


def error(answer: tuple[int, Any, dict[str, str]]) -> tuple[int, str]:
    status, content, _ = answer
    assert set(content) == {"error", "message"}
    assert content["message"].strip().endswith(".")
    return status, content["error"]


async def test_a_call_is_made_resumed_and_ended(page: Http, bridge: Played) -> None:
    status, session, headers = await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": "echo"})
    assert (status, session["agent"], session["expires_in"], session["ice_servers"], session["recorded"]) == (
        201, "echo", 60, [], True)
    assert headers["access-control-allow-origin"] == SHOP
    assert headers["vary"] == "Origin"
    assert headers["cache-control"] == "no-store"
    status, call, _ = await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=session["token"])
    assert (status, call["call"], call["sdp"], call["resume_within"]) == (201, "c-1", "the answer", 10)
    asked = bridge.asked[0]
    assert (asked.kind, asked.sdp, asked.agent, asked.origin, asked.client) == (
        "call", OFFER, "echo", SHOP, "127.0.0.1")
    status, again, _ = await page("POST", "/api/web/calls/c-1/offers", {"sdp": OFFER}, bearer=call["resume_token"])
    assert (status, again["sdp"]) == (200, "the answer")
    assert (bridge.asked[1].kind, bridge.asked[1].call) == ("offer", "c-1")
    status, nothing, _ = await page("DELETE", "/api/web/calls/c-1", bearer=again["resume_token"])
    assert (status, nothing) == (204, None)
    assert (bridge.asked[2].kind, bridge.asked[2].call) == ("end", "c-1")
    status, _, _ = await page("POST", "/api/web/calls/c-1/end", {"resume_token": call["resume_token"]})
    assert status == 204


async def test_the_first_agent_is_the_one_who_answers_where_none_is_asked_for(page: Http) -> None:
    _, session, _ = await page("POST", "/api/web/sessions", {"key": "pk_shop"})
    assert session["agent"] == "agent"


async def test_a_page_names_an_agent_by_its_public_key_or_a_number_and_no_other_that_its_site_may_not_call(
        page: Http, redis: Redis) -> None:
    shop = Agent(name="shop", model="nano", recorded=False, public_key=f"pk_{'k' * 22}")
    await publish(redis, Configuration(version=1, agents=(shop,), numbers=(Number("1", "shop"), Number("2", "echo"))))
    async with asyncio.timeout(5):
        while (await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": "2"}))[0] != 201:
            await asyncio.sleep(0.01)
    _, session, _ = await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": shop.public_key})
    assert (session["agent"], session["recorded"]) == ("shop", False)
    _, session, _ = await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": "2"})
    assert (session["agent"], session["recorded"]) == ("echo", True)
    for wanted in ("shop", "1", "pk_" + "x" * 22):
        assert error(await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": wanted})) == (
            404, "unknown_agent")


@pytest.mark.parametrize("origin", [None, "https://evil.example", "null", "http://shop.example", "https://shop.example."])
async def test_a_page_of_another_origin_is_refused_and_cannot_even_read_why(
    page: Http, bridge: Played, origin: str | None,
) -> None:
    token = await call_token(page)
    other = Http(page.port, origin)
    for method, path, body in (
        ("POST", "/api/web/sessions", {"key": "pk_shop"}), ("POST", "/api/web/calls", {"sdp": OFFER}),
        ("POST", "/api/web/calls/c-1/offers", {"sdp": OFFER}), ("DELETE", "/api/web/calls/c-1", None),
        ("OPTIONS", "/api/web/calls", None), ("POST", "/api/web/calls/c-1/end", {"resume_token": token}),
    ):
        answer = await other(method, path, body, bearer=token)
        assert error(answer) == (403, "wrong_origin"), path
        assert "access-control-allow-origin" not in answer[2]
    assert bridge.asked == []


async def test_a_key_serves_its_own_origins_alone(page: Http, bridge: Played) -> None:
    assert error(await page("POST", "/api/web/sessions", {"key": "pk_closed"})) == (403, "wrong_origin")
    assert error(await page("POST", "/api/web/sessions", {"key": "pk_nobody"})) == (403, "wrong_origin")
    token = await call_token(page)
    for origin in ("https://www.shop.example", CLOSED):
        answer = await Http(page.port, origin)("POST", "/api/web/calls", {"sdp": OFFER}, bearer=token)
        assert error(answer) == (403, "wrong_origin"), "it was given to another origin"


async def test_a_browser_may_ask_beforehand(page: Http) -> None:
    status, _, headers = await page("OPTIONS", "/api/web/calls/c-1/offers")
    assert status == 204
    assert headers["access-control-allow-origin"] == SHOP
    assert headers["access-control-allow-headers"] == "Authorization, Content-Type"
    assert headers["access-control-allow-methods"] == "POST, DELETE"


async def test_an_agent_that_the_site_does_not_have_is_unknown(page: Http) -> None:
    for agent in ("nobody", 7, ["echo"], ""):
        answer = await page("POST", "/api/web/sessions", {"key": "pk_shop", "agent": agent})
        assert error(answer) == (404, "unknown_agent")


async def test_a_call_token_serves_once(page: Http, bridge: Played) -> None:
    token = await call_token(page)
    answers = await asyncio.gather(*(page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=token) for _ in range(4)))
    assert sorted(status for status, _, _ in answers) == [201, 401, 401, 401]
    assert len(bridge.asked) == 1


async def test_an_offer_that_is_wrong_leaves_its_token_good(page: Http, bridge: Played) -> None:
    token = await call_token(page)
    for sdp in ("", "nonsense", OFFER.replace("opus", "G722"), OFFER.replace("v=0", "v=1"), "\ud800" + OFFER):
        answer = await page("POST", "/api/web/calls", {"sdp": sdp}, bearer=token)
        assert error(answer) == (422, "bad_sdp"), sdp
    assert bridge.asked == []
    assert (await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=token))[0] == 201


async def test_without_a_good_token_there_is_no_call(page: Http, bridge: Played) -> None:
    tokens = WebTokens(SECRET)
    resume = tokens.resume("c-1", "b-1", "pk_shop", SHOP, time.time())
    for token in (
        None, "", "nonsense", resume, tokens.call("pk_shop", SHOP, "echo", "", time.time() - 61),
        WebTokens(b"o" * 32).call("pk_shop", SHOP, "echo", "", time.time()),
    ):
        answer = await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=token)
        assert error(answer) == (401, "bad_token")
        assert not token or token not in json.dumps(answer[1])
    assert bridge.asked == []


async def test_without_the_calls_own_resume_token_nobody_comes_back_to_it(page: Http, bridge: Played) -> None:
    tokens = WebTokens(SECRET)
    other = tokens.resume("c-2", "b-1", "pk_shop", SHOP, time.time())
    elsewhere = tokens.resume("c-1", "b-1", "pk_closed", CLOSED, time.time())
    for token, expected in ((None, (401, "bad_token")), (other, (401, "bad_token")),
                            (await call_token(page), (401, "bad_token")), (elsewhere, (403, "wrong_origin"))):
        assert error(await page("POST", "/api/web/calls/c-1/offers", {"sdp": OFFER}, bearer=token)) == expected
        assert error(await page("DELETE", "/api/web/calls/c-1", bearer=token)) == expected
    assert bridge.asked == []


async def test_what_the_process_says_reaches_the_page(page: Http, bridge: Played) -> None:
    resume = WebTokens(SECRET).resume("c-1", "b-1", "pk_shop", SHOP, time.time())
    bridge.answer = Answer("call_over")
    assert error(await page("POST", "/api/web/calls/c-1/offers", {"sdp": OFFER}, bearer=resume)) == (404, "call_over")
    bridge.answer = Answer("bad_sdp", "why")
    answer = await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=await call_token(page))
    assert error(answer) == (422, "bad_sdp")
    bridge.answer = Answer("busy", "full")
    answer = await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=await call_token(page))
    assert error(answer) == (503, "busy")
    assert answer[2]["retry-after"] == "10"
    assert answer[2]["access-control-expose-headers"] == "Retry-After"
    bridge.answer = Answer("unavailable", "no worker")
    answer = await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=await call_token(page))
    assert error(answer) == (503, "unavailable")


async def test_without_a_webrtc_process_calls_are_unavailable(page: Http) -> None:
    answer = await page("POST", "/api/web/calls", {"sdp": OFFER}, bearer=await call_token(page))
    assert error(answer) == (503, "unavailable")


async def test_without_redis_calls_are_unavailable() -> None:
    async with serving("redis://127.0.0.1:1", web_sites=SITES) as port:
        answer = await Http(port, SHOP)("POST", "/api/web/sessions", {"key": "pk_shop"})
        assert error(answer) == (503, "unavailable")


async def test_a_closed_site_lets_in_whom_it_has_signed_once(page: Http, bridge: Played) -> None:
    closed = Http(page.port, CLOSED)
    assert error(await closed("POST", "/api/web/sessions", {"key": "pk_closed"})) == (401, "bad_token")
    claims = {"iss": "pk_closed", "exp": time.time() + 300, "jti": "visit-0001", "sub": "ann"}
    token = jwt.encode(claims, SITE_SECRET, "HS256")
    status, session, _ = await closed("POST", "/api/web/sessions", {"key": "pk_closed", "token": token})
    assert (status, session["agent"]) == (201, "agent")
    await closed("POST", "/api/web/calls", {"sdp": OFFER}, bearer=session["token"])
    assert bridge.asked[0].visitor == "ann"
    again = await closed("POST", "/api/web/sessions", {"key": "pk_closed", "token": token})
    assert error(again) == (401, "bad_token")
    forged = jwt.encode(claims | {"jti": "visit-0002"}, "forged" * 8, "HS256")
    assert error(await closed("POST", "/api/web/sessions", {"key": "pk_closed", "token": forged})) == (401, "bad_token")


async def test_a_large_body_is_refused_before_it_is_read(page: Http) -> None:
    large = json.dumps({"key": "x" * BODY_BYTES}).encode()
    assert error(await page("POST", "/api/web/sessions", raw=large)) == (413, "too_large")
    reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
    head = f"POST /api/web/sessions HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    for _ in range(5):  # without a length, too
        writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
    status = await asyncio.wait_for(reader.readline(), 5)
    assert b" 413 " in status
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("raw", [b"nonsense", b"[]", b'"text"', b"[" * 10_000, b'{"key": 7}', b"\xff\xfe", b"{}"])
async def test_what_is_no_request_is_refused_in_words(page: Http, raw: bytes) -> None:
    assert error(await page("POST", "/api/web/sessions", raw=raw)) == (400, "bad_request")


async def test_an_address_that_asks_too_often_has_to_wait(redis: Redis, redis_url: str) -> None:
    async with serving(redis_url, web_sites=SITES, web_requests_per_minute=3) as port:
        page = Http(port, SHOP)
        for _ in range(3):
            await call_token(page)
        answer = await page("POST", "/api/web/sessions", {"key": "pk_shop"})
        assert error(answer) == (429, "rate_limited")
        assert 0 < int(answer[2]["retry-after"]) <= 60


async def test_relays_are_handed_out_with_credentials_for_a_while(redis: Redis, redis_url: str) -> None:
    given = {"turn_urls": "turn:turn.example:3478, turns:turn.example:5349", "turn_secret": "of coturn"}
    async with serving(redis_url, web_sites=SITES, **given) as port:
        _, session, _ = await Http(port, SHOP)("POST", "/api/web/sessions", {"key": "pk_shop"})
        [server] = session["ice_servers"]
        assert server["urls"] == ["turn:turn.example:3478", "turns:turn.example:5349"]
        assert int(server["username"].partition(":")[0]) > time.time() + 3600
        assert server["credential"]
        assert "of coturn" not in json.dumps(session)


async def test_the_demo_page_is_its_own_site(redis: Redis, redis_url: str) -> None:
    async with serving(redis_url) as port:
        for host in ("127.0.0.1", "localhost"):
            page = Http(port, f"http://{host}:{port}")
            assert (await page("POST", "/api/web/sessions", {"key": "demo", "agent": "echo"}))[0] == 201
        assert error(await Http(port, SHOP)("POST", "/api/web/sessions", {"key": "demo"})) == (403, "wrong_origin")
