"""One SIP role and its surroundings for all the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from sip_bench import Bridge, Surroundings, running

from calls.connect import open_redis


@pytest.fixture(scope="module")
def around(redis_url: str) -> Iterator[Surroundings]:
    Redis.from_url(redis_url).flushdb()
    with Surroundings(redis_url) as surroundings:
        yield surroundings


@pytest.fixture(scope="module")
def bridge(around: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with running(around.redis_url, tmp_path_factory.mktemp("bridge"), lease_s=15.0) as started:
        yield started


@pytest.fixture
async def client(around: Surroundings) -> AsyncIterator[AsyncRedis]:
    async with open_redis(around.redis_url) as client:
        yield client
