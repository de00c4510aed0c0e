"""Real servers for all tests: one Redis and one Postgres for the session, emptied for each test that uses them.

TANDEM_TEST_REDIS_URL and TANDEM_TEST_DATABASE_URL name others, which must be the tests' own: they are emptied. Where
tests run in several processes, each has servers of its own, or a database of its own in those.

`make test` runs two processes. Calls are in real time: their tests are one group, which runs in one of the two, since
two calls' tests at once disturb each other; a file of the others is a group by itself.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis
from sqlalchemy import make_url
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from calls.connect import open_redis
from calls.priority import session_before_others
from calls.store import Store, upgrade
from calls.tables import Base
from tandem.embedded import embedded_postgres, embedded_redis

GIVING_WAY, IN_TIME = 10, -5  # nicenesses of sessions
IN_REAL_TIME = ("tests/sip/", "tests/end_to_end/", "tests/media/", "tests/tandem/test_bench_calls.py")


class _Scheduling(LoadScopeScheduling):
    """Tests in real time are one group, and each file of the others."""

    def _split_scope(self, nodeid: str) -> str:
        return "in real time" if nodeid.startswith(IN_REAL_TIME) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Those that compute give way to those in real time, and each process has a session of its own, with the phones and
    browsers that it starts: a niceness counts within a session only."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    if os.getsid(0) != os.getpid():
        os.setsid()
        session_before_others(IN_TIME)
    if not item.nodeid.startswith(IN_REAL_TIME) and os.getpriority(os.PRIO_PROCESS, 0) != GIVING_WAY:
        os.setpriority(os.PRIO_PROCESS, 0, GIVING_WAY)
        session_before_others(GIVING_WAY)


@pytest.fixture(scope="session")
def worker_number() -> int:
    """Of the process among those that run tests at the same time: 0 for the first, or the only one."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory, worker_number: int) -> Iterator[str]:
    given = os.environ.get("TANDEM_TEST_REDIS_URL")
    if given:
        yield f"{given}{'&' if '?' in given else '?'}db={worker_number}" if worker_number else given
    else:
        with embedded_redis(_data_dir(tmp_path_factory)) as url:
            yield url


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory, worker_number: int) -> Iterator[str]:
    """A database at its newest version."""
    given = os.environ.get("TANDEM_TEST_DATABASE_URL")
    if given and worker_number:
        with _another_database(given, f"{make_url(given).database}_{worker_number}") as url:
            upgrade(url)
            yield url
    elif given:
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
    with _another_database(database_url, f"test_{uuid4().hex}") as url:
        yield url


@contextmanager
def _another_database(url: str, name: str) -> Iterator[str]:
    """On the same server."""
    quoted = sql.Identifier(name)
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(quoted))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(quoted))
        try:
            yield make_url(url).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


def _data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")
