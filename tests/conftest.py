"""Real servers for all tests: one Redis and one Postgres for the session, emptied for each test that uses them.

TANDEM_TEST_REDIS_URL and TANDEM_TEST_DATABASE_URL name others, which must be the tests' own: they are emptied.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from redis.asyncio import Redis
from sqlalchemy import make_url

from calls.connect import open_redis
from calls.store import Store, upgrade
from calls.tables import Base
from tandem.embedded import embedded_postgres, embedded_redis


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = os.environ.get("TANDEM_TEST_REDIS_URL")
    if given:
        yield given
    else:
        with embedded_redis(_data_dir(tmp_path_factory)) as url:
            yield url


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database at its newest version."""
    given = os.environ.get("TANDEM_TEST_DATABASE_URL")
    if given:
        upgrade(given)
        yield given
    else:
        with embedded_postgres(_data_dir(tmp_path_factory), durable=False) as url:
            upgrade(url)
            yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of a Redis without keys."""
    async with open_redis(redis_url) as client:
        await client.flushdb()
        yield client


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store without calls."""
    with closing(psycopg.connect(database_url, autocommit=True)) as connection:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        connection.execute(f"TRUNCATE {tables}".encode())
    store = Store(database_url)
    yield store
    await store.close()


@pytest.fixture
def new_database_url(database_url: str) -> Iterator[str]:
    """A database in which nothing has been made yet."""
    name = f"test_{uuid4().hex}"
    with closing(psycopg.connect(database_url, autocommit=True)) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield make_url(database_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")
