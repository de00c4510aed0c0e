"""Trunks behind the edge: signed in, called and calling through it, at a real carrier."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from carrier import PASSWORD, USER, carrier
from edge_bench import PHONES, Edge
from sip_bench import Surroundings, wait_for
from telephone_answerer import answering

from calls.connect import open_redis
from calls.dialling import Dial, Dials
from calls.events import CallAnswered, CallEnded, EndReason
from calls.telephony_published import TrunkState, states
from sip.phone import phone


async def _state(redis_url: str, since: float) -> TrunkState | None:
    async with open_redis(redis_url) as redis:
        return next((state for state in await states(redis, time.time())
                     if state.trunk == "carrier" and state.at > since), None)


async def test_the_edge_signs_in_and_calls_go_both_ways_through_it(
    around: Surroundings, before: Edge, tmp_path: Path,
) -> None:
    with carrier(tmp_path / "carrier") as at:
        since = time.time()
        trunk = {"name": "carrier", "host": at.host, "user": USER,
                 "password": PASSWORD, "register": True}
        await asyncio.to_thread(lambda: before.publish(
            trunks=[trunk, PHONES], outbound={"destinations": ["*@127.0.0.1"]}))
        async with asyncio.timeout(20):
            while (state := await _state(around.redis_url, since)) is None or state.state != "registered":
                await asyncio.sleep(0.2)
        assert state.sip_status == 200
        [signed_in] = at.heard("REGISTER ", "Authorization: Digest")[-1:]
        assert f"Contact: <sip:{USER}@127.0.0.1:{before.port}>" in signed_in, "the edge's address"
        assert (await phone(f"sip:did-edge@{at.host}", seconds=0.5)).status == 200
        ended = await asyncio.to_thread(around.end_of, "did-edge")
        assert ended.reason is EndReason.CALLER_HUNG_UP
        with answering(at.phone_port, tmp_path):
            async with open_redis(around.redis_url) as redis:
                answer = await Dials(redis).place(Dial(to="4711", trunk="carrier"))
            assert not answer.error, answer.message
            [first, *_] = await asyncio.to_thread(wait_for, lambda: [
                envelope.event for envelope in around.events() if envelope.call == answer.call
                and isinstance(envelope.event, CallAnswered | CallEnded)])
            assert first == CallAnswered("PCMA")
        assert at.heard("INVITE sip:4711@", "Proxy-Authorization: Digest")
