from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from calls import offers
from calls.connect import open_redis
from calls.offers import MOST_WAITING, Answer, Inbox, Offers, Request
from calls.routing import BridgeRegistry, RoutingUnavailable

SDP = "v=0"
ABOUT = {"agent": "echo", "origin": "https://shop.example", "client": "192.0.2.1", "visitor": "", "reference": "r-1"}


async def beat(redis: Redis, bridge: str, calls: int, capacity: int = 10) -> None:
    await BridgeRegistry(redis, expiry_s=60).beat(bridge, "webrtc", calls, capacity)


async def serve(redis: Redis, bridge: str, answer: Answer) -> Request:
    """Answers the next request of a bridge."""
    inbox = Inbox(redis, bridge)
    async with asyncio.timeout(5):
        while (request := await inbox.next()) is None:
            pass
    await inbox.reply(request, answer)
    return request


async def test_an_offer_goes_to_the_least_loaded_process_and_its_answer_comes_back(redis: Redis) -> None:
    await beat(redis, "busy-one", 5)
    await beat(redis, "idle-one", 1)
    await BridgeRegistry(redis, expiry_s=60).beat("a-phone", "sip", 0, 4)
    given = Answer(call="c-1", sdp="v=0 too", bridge="idle-one")
    answer, request = await asyncio.gather(Offers(redis).call(SDP, **ABOUT), serve(redis, "idle-one", given))
    assert answer == given
    assert (request.kind, request.sdp, request.agent, request.reference) == ("call", SDP, "echo", "r-1")


async def test_a_process_that_turns_out_to_be_full_passes_the_offer_on(redis: Redis) -> None:
    await beat(redis, "first", 0)
    await beat(redis, "second", 1)
    answer, *_ = await asyncio.gather(
        Offers(redis).call(SDP, **ABOUT), serve(redis, "first", Answer("busy")),
        serve(redis, "second", Answer(call="c")))
    assert answer.call == "c"


async def test_when_all_are_full_the_call_is_busy(redis: Redis) -> None:
    await beat(redis, "only", 10)
    answer, _ = await asyncio.gather(Offers(redis).call(SDP, **ABOUT), serve(redis, "only", Answer("busy", "full")))
    assert answer == Answer("busy", "full")


async def test_without_a_process_nothing_waits(redis: Redis) -> None:
    await beat(redis, "ending", 3, capacity=0)
    assert (await Offers(redis).call(SDP, **ABOUT)).error == "unavailable"
    assert (await Offers(redis).offer("gone", "c-1", SDP)).error == "call_over"
    assert (await Offers(redis).end("gone", "c-1")).error == "call_over"


async def test_a_process_that_fetches_nothing_gets_no_more_than_its_list_holds(
    redis: Redis, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offers, "WAIT_S", 0.2)
    await beat(redis, "stuck", 0)
    asking = Offers(redis)
    answers = await asyncio.gather(*(asking.call(SDP, **ABOUT) for _ in range(MOST_WAITING)), return_exceptions=True)
    assert all(isinstance(answer, RoutingUnavailable) for answer in answers), "none answered in time"
    await redis.delete(*(await redis.keys("*offers*") or ["none"]))
    key = "tandem:{offers stuck}"
    await redis.rpush(key, *["x"] * MOST_WAITING)
    assert (await asking.call(SDP, **ABOUT)).error == "busy"


async def test_an_offer_that_waited_too_long_is_not_taken_up(redis: Redis) -> None:
    await beat(redis, "slow", 0)
    asking = asyncio.create_task(Offers(redis).call(SDP, **ABOUT))
    while not await redis.exists("tandem:{offers slow}"):
        await asyncio.sleep(0.01)
    await redis.copy("tandem:{offers slow}", "tandem:{offers fast}")
    assert await Inbox(redis, "slow", clock=lambda: 4e9).next() is None
    assert await Inbox(redis, "fast").next() is not None
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_what_is_no_request_is_passed_over(redis: Redis) -> None:
    await redis.rpush("tandem:{offers b}", "nonsense")
    assert await Inbox(redis, "b").next() is None


async def test_without_redis_offers_say_so() -> None:
    async with open_redis("redis://127.0.0.1:1") as away:
        with pytest.raises(RoutingUnavailable):
            await Offers(away).call(SDP, **ABOUT)
