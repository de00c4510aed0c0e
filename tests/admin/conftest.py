"""The web role with its API, and a key for each thing that keys may do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from api_client import Api
from redis.asyncio import Redis
from web_role import serving

from calls.api_keys import ApiKeys, Scope
from calls.store import Store

KEYS = {"both": (Scope.READ, Scope.CONTROL), "reads": (Scope.READ,), "controls": (Scope.CONTROL,),
        "configures": (Scope.READ, Scope.CONFIGURE), "erases": (Scope.READ, Scope.ERASE), "all": tuple(Scope)}


@pytest.fixture
async def api(redis_url: str, redis: Redis, store: Store, database_url: str) -> AsyncIterator[Api]:
    keys = ApiKeys(store)
    async with serving(redis_url, database_url) as port:
        yield Api(port, {name: (await keys.make(name, scopes))[1] for name, scopes in KEYS.items()})
