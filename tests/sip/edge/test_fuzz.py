"""Broken messages to the edge, from a trunk, so that what can be read goes on to a SIP process. `make fuzz`: many."""

from __future__ import annotations

import asyncio

import psutil
import pytest
from edge_bench import PHONES, edge
from fuzzing import GROWTH_MB, SEED, grew_mb, memory_mb, send
from sip_bench import Surroundings, wait_for

from sip.phone import PhoneError, phone

ATTACKER = "127.0.0.28"
T1_MS = 50  # a tenth of what is usual: an answer that isn't acknowledged is given up after 3.2 s, its BYE as late
CALLS_END_S = 30.0


async def takes_a_call(uri: str) -> bool:
    try:
        return (await phone(uri, seconds=0.2)).status == 200
    except PhoneError:
        return False


async def test_the_edge_and_its_sip_process_outlive_broken_messages(
    around: Surroundings, tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with edge(around.redis_url, tmp_path_factory.mktemp("edge"), processes=1, sip_t1_ms=T1_MS) as attacked:
        await asyncio.to_thread(
            lambda: attacked.publish(trunks=[{**PHONES, "sources": [f"{ATTACKER}/32", "127.0.0.1/32"]}]))
        assert await takes_a_call(attacked.uri("before"))
        children = psutil.Process(attacked.process.pid).children(recursive=True)
        processes = memory_mb([*(child.pid for child in children), *attacked.bridge.children()])
        await asyncio.to_thread(send, attacked.port, ATTACKER)
        await asyncio.to_thread(
            wait_for, lambda: asyncio.run(takes_a_call(attacked.uri("afterwards"))), CALLS_END_S)
        assert "sip:ann@127.0.0.25" in repr(around.events()), "some came through to where calls are made of them"
        assert grew_mb(processes) < GROWTH_MB, f"seed {SEED}: or one of them ended"
        assert await asyncio.to_thread(around.no_lease_is_left)
