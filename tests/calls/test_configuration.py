"""The configuration's way through Postgres and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from calls.agent_store import AgentStore, ConfigurationRefused
from calls.agents import Agent, Configuration, Number
from calls.configuration import Follower, publish, published
from calls.settings import Settings
from calls.store import Store

AGENT = Agent(name="agent", model="nano", greeting="Hello.")
KNOWN = frozenset({"agent", "echo"})


@asynccontextmanager
async def following(redis: Redis) -> AsyncIterator[Follower]:
    follower = Follower(redis, Settings())
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_follower_begins_with_the_newest_snapshot_and_gets_each_that_comes(redis: Redis) -> None:
    await publish(redis, Configuration(version=4, agents=(AGENT,)))
    async with following(redis) as follower:
        await follower.first()
        assert follower.now.called("anybody").greeting == "Hello."
        began = follower.now
        await publish(redis, Configuration(version=5))
        await _until(lambda: follower.now.version == 5)
        assert follower.now.called("anybody").greeting == ""
        assert began.called("anybody").greeting == "Hello."  # what a running call holds


async def test_an_older_version_never_comes_after_a_newer_one(redis: Redis) -> None:
    assert await publish(redis, Configuration(version=5)) == 5
    assert await publish(redis, Configuration(version=4, agents=(AGENT,))) == 5
    assert (await published(redis)).agents == ()


async def test_a_snapshot_that_cant_be_read_changes_nothing(redis: Redis) -> None:
    async with following(redis) as follower:
        await redis.xadd("tandem:{configuration}", {"snapshot": "{nonsense"}, id="1-0")
        await publish(redis, Configuration(version=2, agents=(AGENT,)))
        await _until(lambda: follower.now.version == 2)
        assert AGENT in follower.now.agents


async def test_each_change_is_a_version_and_reads_as_one_moment(store: Store) -> None:
    agents = AgentStore(store)
    assert await agents.configuration() == Configuration()
    made = await agents.put(AGENT)
    await agents.put_number(Number("100", "agent"), KNOWN)
    assert await agents.configuration() == Configuration(version=2, agents=(made,), numbers=(Number("100", "agent"),))
    assert await agents.remove_number("100")
    assert not await agents.remove_number("100")


async def test_a_public_key_stays_until_another_one_is_wanted(store: Store) -> None:
    agents = AgentStore(store)
    first = await agents.put(AGENT)
    assert (await agents.put(AGENT)).public_key == first.public_key
    assert (await agents.put(AGENT, new_key=True)).public_key not in ("", first.public_key)


async def test_numbers_reach_agents_that_there_are_and_hold_them(store: Store) -> None:
    agents = AgentStore(store)
    with pytest.raises(ConfigurationRefused, match="no agent shop"):
        await agents.put_number(Number("100", "shop"), KNOWN)
    await agents.put(Agent(name="shop", model="nano"))
    await agents.put_number(Number("100", "shop"), KNOWN)
    with pytest.raises(ConfigurationRefused, match="100 reaches shop"):
        await agents.remove("shop", KNOWN)
    await agents.put_number(Number("100", "echo"), KNOWN)
    assert await agents.remove("shop", KNOWN)


async def test_changes_at_once_are_versions_of_their_own(store: Store) -> None:
    agents = AgentStore(store)
    await asyncio.gather(*(agents.put(Agent(name=f"a{at}", model="m")) for at in range(8)))
    found = await agents.configuration()
    assert (found.version, len(found.agents)) == (8, 8)
