"""Broken messages to a SIP process, by a seed: it lives on, as large as before, and takes calls. `make fuzz`: many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fuzzing import GROWTH_MB, MESSAGES, SEED, grew_mb, memory_mb, messages, send
from sip_bench import Bridge, Surroundings, running, wait_for

from sip.phone import PhoneError, phone

ATTACKER = "127.0.0.27"
T1_MS = 50  # a tenth of what is usual: an answer that isn't acknowledged is given up after 3.2 s, its BYE as late
CALLS_END_S = 30.0


@pytest.fixture(scope="module")
def bridge(around: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with running(around.redis_url, tmp_path_factory.mktemp("bridge"), lease_s=15.0, sip_t1_ms=T1_MS) as started:
        yield started


def test_the_same_seed_makes_the_same_messages_and_few_are_alike() -> None:
    made = list(messages())
    assert made == list(messages())
    assert len(set(made)) > 0.95 * MESSAGES


async def takes_a_call(uri: str) -> bool:
    try:
        return (await phone(uri, seconds=0.2)).status == 200
    except PhoneError:  # full of calls that nobody acknowledged
        return False


async def test_a_sip_process_outlives_broken_messages(around: Surroundings, bridge: Bridge) -> None:
    assert await takes_a_call(bridge.uri("before"))
    processes = memory_mb(bridge.children())
    await asyncio.to_thread(send, bridge.port, ATTACKER)
    await asyncio.to_thread(
        wait_for, lambda: asyncio.run(takes_a_call(bridge.uri("afterwards"))), CALLS_END_S)
    assert bridge.children() == list(processes), f"seed {SEED}: a process ended"
    assert "sip:ann@127.0.0.25" in repr(around.events()), "some came through to where calls are made of them"
    assert grew_mb(processes) < GROWTH_MB, f"seed {SEED}"
    assert await asyncio.to_thread(around.no_lease_is_left)
