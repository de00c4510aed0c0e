"""An operator's browser on a running call, by aiortc's own peer connection. The call's worker echoes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from call_fakes import SILENT_FRAME, until
from redis.asyncio import Redis
from web_bench import WebBench
from web_peer import PIECE, RATE, Microphone, WebPeer, returned, wait_for

from calls.controls import Control, Controls
from calls.events import ControlTaken
from media.webrtc import operator as operator_module

SECRET = b"s" * 32


class Operators:
    def __init__(self, bench: WebBench, redis: Redis) -> None:
        self.bench = bench
        self.controls = Controls(redis)

    async def listens(self, call: str, by: str = "ann", microphone: Microphone | None = None) -> tuple[WebPeer, str]:
        peer = self.bench.peer(microphone)
        answer = await self.bench.offers.tap(call, by, await peer.offer(), SECRET)
        assert not answer.error, answer
        await peer.take(answer.sdp)
        await peer.connected()
        return peer, answer.call

    async def gives(self, call: str, action: str, by: str = "ann", **what: str) -> tuple[str, str]:
        control = Control(call, action, by=by, **what)  # type: ignore[arg-type]
        await self.controls.give(control)
        result = await self.controls.result(control, 5.0)
        assert result is not None
        return result.outcome, result.why

    async def spans(self, call: str, action: str) -> list[ControlTaken]:
        newest = {each.event.id: each.event for each in await self.bench.events(call)
                  if isinstance(each.event, ControlTaken)}
        return [event for event in newest.values() if event.action == action]


@pytest.fixture
def operators(bench: WebBench, redis: Redis) -> Operators:
    return Operators(bench, redis)


async def test_an_operator_hears_the_caller(operators: Operators, bench: WebBench, hello: np.ndarray) -> None:
    call = await bench.call(bench.peer(Microphone(np.concatenate([np.zeros(RATE, np.int16), hello]))))
    operator, _ = await operators.listens(call)
    await wait_for(lambda: len(operator.heard) * PIECE > hello.size + 2 * RATE)
    assert returned(hello, operator)[1] > 0.6, "both sides, one of which is the echo of the other"


async def test_what_an_operator_says_in_the_agents_place_reaches_the_caller_and_not_themselves(
        operators: Operators, bench: WebBench, hello: np.ndarray) -> None:
    bench.worker.says = SILENT_FRAME
    caller = bench.peer()
    call = await bench.call(caller)
    voice = Microphone(np.concatenate([hello] * 4))
    operator, tap = await operators.listens(call, microphone=voice)
    await wait_for(lambda: len(caller.heard) > 50)
    before = len(caller.heard)
    assert not np.concatenate(caller.heard[:before]).any(), "who only listens isn't heard"
    assert await operators.gives(call, "take_over", tap=tap) == ("talking", "")
    await wait_for(lambda: (len(caller.heard) - before) * PIECE > hello.size + RATE)
    assert returned(hello, caller)[1] > 0.8
    assert await operators.gives(call, "hand_back") == ("done", "")
    await wait_for(lambda: operator.states == ["listening", "talking", "listening"])
    told = len(caller.heard)
    await wait_for(lambda: len(caller.heard) > told + 50)
    assert not np.concatenate(caller.heard[told + 10:]).any()
    assert np.abs(np.concatenate(operator.heard).astype(int)).max() < 50, "they don't hear themselves"
    [span] = await operators.spans(call, "take_over")
    assert span.outcome == "talked"
    assert span.k > span.first_k


async def test_an_operator_who_vanishes_hands_back_within_a_bounded_time(
        operators: Operators, bench: WebBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "LOST_S", 0.5)
    caller = bench.peer()
    call = await bench.call(caller)
    operator, tap = await operators.listens(call)
    assert (await operators.gives(call, "take_over", tap=tap))[0] == "talking"
    await operator.vanish()
    await until(lambda: not bench.web_call(call).session.taps.talker, 3)
    async with asyncio.timeout(3):
        while [span.outcome for span in await operators.spans(call, "listen")] != ["listened"]:
            await asyncio.sleep(0.02)
    assert caller.connection.connectionState == "connected"
    assert not bench.bridge._operators


async def test_who_isnt_allowed_any_more_is_taken_off(
        operators: Operators, bench: WebBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "RENEWED_WITHIN_S", 1.0)
    call = await bench.call(bench.peer())
    operator, tap = await operators.listens(call)
    for _ in range(4):
        await asyncio.sleep(0.4)
        assert (await bench.offers.renew(tap, "ann")).error == ""
    assert (await bench.offers.renew(tap, "bob")).error == "call_over"
    await wait_for(lambda: operator.states[-1] == "ended", 3)
    assert operator.told[-1]["reason"] == "nobody said that you may still listen"
    assert (await bench.offers.renew(tap, "ann")).error == "call_over"


async def test_a_call_that_ends_tells_who_listens(operators: Operators, bench: WebBench) -> None:
    caller = bench.peer()
    call = await bench.call(caller)
    operator, _ = await operators.listens(call)
    caller.say(type="hangup")
    await wait_for(lambda: operator.told[-1] == {"type": "state", "state": "ended", "reason": "the call is over"})
    assert (await bench.offers.tap(call, "ann", await bench.peer().offer(), SECRET)).error == "call_over"
    assert (await bench.offers.tap("none", "ann", await bench.peer().offer(), SECRET)).error == "call_over"


async def test_a_grant_of_another_secret_opens_nothing(operators: Operators, bench: WebBench) -> None:
    call = await bench.call(bench.peer())
    refused = await bench.offers.tap(call, "ann", await bench.peer().offer(), b"x" * 32)
    assert refused.error == "unavailable"
    assert not bench.bridge._operators
