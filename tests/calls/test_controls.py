from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from calls.connect import open_redis
from calls.controls import MOST_WAITING, WAIT_S, Control, ControlInbox, ControlRefused, Controls, NoSuchCall, Result
from calls.routing import RoutingUnavailable
from calls.wire import SamplingSettings

HOLD = Control("call-1", "hold", mute=True, by="ann", id="one")


@pytest.fixture
async def inbox(redis: Redis) -> ControlInbox:
    inbox = ControlInbox(redis, "bridge-1", clock=lambda: HOLD.accepted_at)
    await inbox.here(["call-1", "call-2"], expiry_s=5)
    return inbox


async def test_a_control_reaches_the_bridge_of_its_call_and_its_result_comes_back(
        redis: Redis, inbox: ControlInbox) -> None:
    controls = Controls(redis)
    await controls.give(HOLD)
    assert await inbox.next() == HOLD
    done = Result("one", "held", 12, 12)
    await inbox.reply(HOLD, done)
    assert await controls.result(HOLD, timeout_s=1) == done


async def test_controls_come_in_the_order_in_which_they_were_given(redis: Redis, inbox: ControlInbox) -> None:
    given = [Control("call-1", "speak"), Control("call-2", "say", "hello there"), Control("call-1", "release")]
    for control in given:
        await Controls(redis).give(control)
    assert [await inbox.next() for _ in given] == given


async def test_a_call_that_isnt_running_takes_no_controls(redis: Redis, inbox: ControlInbox) -> None:
    with pytest.raises(NoSuchCall, match="no call gone is running"):
        await Controls(redis).give(replace(HOLD, call="gone"))
    await inbox.gone("call-1")
    with pytest.raises(NoSuchCall):
        await Controls(redis).give(HOLD)


async def test_a_control_that_nobody_fetched_in_time_has_no_effect(redis: Redis, inbox: ControlInbox) -> None:
    await Controls(redis).give(HOLD)
    inbox.clock = lambda: HOLD.accepted_at + WAIT_S + 1
    assert await inbox.next() is None


async def test_a_bridge_that_fetches_nothing_gets_no_more(redis: Redis, inbox: ControlInbox) -> None:
    controls = Controls(redis)
    for _ in range(MOST_WAITING):
        await controls.give(Control("call-1", "release"))
    with pytest.raises(RoutingUnavailable, match="controls wait"):
        await controls.give(HOLD)


@pytest.mark.parametrize(("control", "why"), [
    (Control("c", "say"), "say: give the text"),
    (Control("c", "whisper", "  "), "whisper: give the text"),
    (Control("c", "hold", "text"), "hold takes no text"),
    (Control("c", "speak", mute=True), "only a hold can be muted"),
    (Control("c", "set"), "set, and only set, takes sampling settings"),
    (Control("c", "speak", sampling=SamplingSettings()), "set, and only set, takes sampling settings"),
    (Control("c", "speak", id="an id"), "id: 1 to 64 letters"),
])
async def test_what_no_call_could_do_is_refused_in_one_line(control: Control, why: str, redis: Redis) -> None:
    with pytest.raises(ControlRefused, match=why):
        await Controls(redis).give(control)


async def test_a_result_that_doesnt_come_is_none_within_the_time(redis: Redis) -> None:
    async with asyncio.timeout(3):
        assert await Controls(redis).result(HOLD, timeout_s=0.1) is None


async def test_rubbish_in_the_inbox_is_skipped(redis: Redis, inbox: ControlInbox) -> None:
    await redis.rpush("tandem:{controls bridge-1}", b"rubbish", b'{"call": "call-1", "action": "explode"}')
    assert await inbox.next() is None
    assert await inbox.next() is None
    await Controls(redis).give(HOLD)
    assert await inbox.next() == HOLD


async def test_without_redis_there_is_one_line() -> None:
    async with open_redis("redis://127.0.0.1:1") as away:
        with pytest.raises(RoutingUnavailable, match=r"^Redis: [^\n]+$"):
            await Controls(away).give(HOLD)
