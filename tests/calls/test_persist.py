from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from persisting import ENDED, RECEIVED, persisting, until, until_asked, writing
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls import persist
from calls.connect import open_redis
from calls.events import CallAnswered, LineNoted, Series, Speaker, UtteranceSpoken, Word
from calls.live import PARTITIONS, EventReader, EventWriter, dead_key, partition_of, stream_key
from calls.settings import Settings, SettingsError, load_settings
from calls.store import DatabaseAway, Store, upgrade
from tandem.embedded import embedded_postgres, embedded_redis


def said(n: int, final: bool = True) -> UtteranceSpoken:
    word = Word(f"word{n}", n, n + 1, 0.08 * n, 0.08 * (n + 2))
    return UtteranceSpoken(Speaker.AGENT, n, n + 1, (word,), final)


async def test_a_call_is_in_postgres_soon_after_it_happened(redis: Redis, store: Store, both: Settings) -> None:
    async with persisting(both), writing(redis) as writer:
        writer.emit("call", 0, RECEIVED)
        writer.emit("call", 1, CallAnswered("PCMU"))
        writer.emit("call", 1, said(5))
        writer.emit("call", 1, ENDED)
        await until(lambda: writer.unsaved == 0, "everything is saved")
    row = await store.call("call")
    assert row is not None
    assert (row.state, row.codec, row.frames) == ("ended", "PCMU", 500)
    assert [each.text for each in await store.utterances("call")] == ["word5"]


async def test_a_persister_that_stops_saves_what_lies_in_redis_first(
        redis: Redis, store: Store, both: Settings) -> None:
    writer = EventWriter(redis, "bridge", kept_events=10_000)
    for n in range(2000):
        writer.emit(f"call {n}", 0, RECEIVED)
    assert await writer.drain(30) == 0
    async with persisting(both):
        await until_asked(lambda: _has(store, "call 1999"), "it has begun")
    assert len(await store.calls(1000)) == 1000
    for partition in range(PARTITIONS):
        pending = await redis.xpending(stream_key(partition), "persist")
        assert pending["pending"] == 0
        assert await redis.xinfo_consumers(stream_key(partition), "persist") == []


async def _has(store: Store, call: str) -> bool:
    return await store.call(call) is not None


async def test_what_cant_be_saved_is_set_aside_and_holds_up_no_other(
        redis: Redis, store: Store, both: Settings) -> None:
    """Bytes of another version, values that Postgres refuses, and keys that aren't ours, among good events."""
    stream = stream_key(partition_of("call"))
    async with persisting(both), writing(redis) as writer:
        writer.emit("call", 1, said(1))
        bad = writer.emit("call", 1, replace(ENDED, frames=2**70))
        writer.emit("call", 1, said(2))
        await until(lambda: writer.unsent == 0, "all are sent")
        await redis.xadd(stream, {"key": "1 1 another call 2", "floor": "1", "event": '{"from": "the future"}'})
        await redis.xadd(stream, {"key": "1 2 another call 2", "floor": "1", "event": "\0"})
        await redis.xadd(stream, {"something": "else"})
        writer.emit("call", 1, said(3))
        await until(lambda: writer.unsaved == 0, "its writer forgets even the bad one")
        await until_asked(lambda: _dead(redis, 4), "four are set aside")
    assert [each.text for each in await store.utterances("call")] == ["word1", "word2", "word3"]
    dead = [fields for _, fields in await redis.xrange(dead_key(partition_of("call")))]
    assert {fields[b"series"] for fields in dead} == {b"1 bridge call", b"1 another call 2", b""}
    (refused,) = [fields for fields in dead if fields[b"series"] == b"1 bridge call"]
    assert refused[b"why"].startswith(b"Postgres refuses the values")
    assert int(refused[b"sequence"]) == bad.sequence


async def _dead(redis: Redis, count: int) -> bool:
    return await redis.xlen(dead_key(partition_of("call"))) >= count


async def test_an_event_sent_under_a_key_that_isnt_its_own_is_set_aside(
        redis: Redis, store: Store, both: Settings) -> None:
    writer = EventWriter(redis, "bridge", kept_events=10)
    writer.emit("call", 1, said(1))
    await writer.drain(10)
    stream = stream_key(partition_of("call"))
    ((_, fields),) = await redis.xrange(stream)
    await redis.xadd(stream, {**fields, b"key": b"1 1 mallory call"})
    async with persisting(both):
        await until_asked(lambda: _dead(redis, 1), "it is set aside")
    assert len(await store.utterances("call")) == 1


async def test_a_writer_forgets_an_event_of_a_kind_that_its_persister_doesnt_know(
        redis: Redis, store: Store) -> None:
    """As in an upgrade where the bridges come first."""
    writer = EventWriter(redis, "bridge", kept_events=10)
    for n in (1, 2):
        writer.emit("call", 1, said(n))
    await writer.drain(10)
    reader = EventReader(redis, "reader")
    first, second = await reader.read(1.0)
    await persist.save(reader, store, [replace(first, data=b'{"from": "the future"}'), second])
    await writer._forget_saved()
    assert writer.unsaved == 0


async def test_a_batch_is_held_until_postgres_is_back(redis: Redis, store: Store, database_url: str) -> None:
    class AwayAtFirst(Store):
        tries = 0

        async def apply(self, *args: Any, **kwargs: Any) -> dict[Series, int]:
            self.tries += 1
            if self.tries < 3:
                raise DatabaseAway("Postgres: away")
            return await super().apply(*args, **kwargs)

    away = AwayAtFirst(database_url)
    stop = asyncio.Event()
    reader = EventReader(redis, "reader", claim_idle_s=3600)
    task = asyncio.create_task(persist._save_until(reader, away, stop, 30))
    async with writing(redis) as writer:
        writer.emit("call", 1, said(1))
        await until(lambda: writer.unsaved == 0, "it is saved")
    stop.set()
    await task
    await away.close()
    assert away.tries == 3


async def test_what_a_persister_wrote_but_didnt_acknowledge_is_written_once(redis: Redis, store: Store) -> None:
    """It dies between commit and acknowledgement, and another one takes over."""
    writer = EventWriter(redis, "bridge", kept_events=10)
    for n in range(3):
        writer.emit("call", 1, said(n))
    await writer.drain(10)
    dying = EventReader(redis, "dying")
    await persist.save(_WithoutAck(dying), store, await dying.read(1.0))  # type: ignore[arg-type]
    heir = EventReader(redis, "heir", claim_idle_s=0.01)
    found = []
    async with asyncio.timeout(30):
        while not found:
            found = await heir.read(0.05)
    await persist.save(heir, store, found)
    assert [each.text for each in await store.utterances("call")] == ["word0", "word1", "word2"]
    assert await heir.read(0.05) == []


class _WithoutAck:
    def __init__(self, reader: EventReader) -> None:
        self.publish, self.set_aside = reader.publish, reader.set_aside

    async def ack(self, entries: object) -> None: ...


async def test_a_persister_waits_for_its_tables_to_be_made_and_makes_them(
        redis: Redis, redis_url: str, new_database_url: str) -> None:
    async with persisting(load_settings(redis_url=redis_url, database_url=new_database_url)), writing(redis) as writer:
        writer.emit("call", 0, RECEIVED)
        await until(lambda: writer.unsaved == 0, "it is saved")
    store = Store(new_database_url)
    row = await store.call("call")
    await store.close()
    assert row is not None
    assert row.caller == RECEIVED.caller


@pytest.mark.parametrize("missing", ["redis_url", "database_url"])
async def test_without_a_url_there_is_one_line_that_names_it(missing: str) -> None:
    urls = {"redis_url": "redis://localhost", "database_url": "postgresql://localhost/tandem"}
    del urls[missing]
    with pytest.raises(SettingsError, match=f"TANDEM_{missing.upper()}: persist needs it"):
        await persist.run(load_settings(**urls), asyncio.Event())


async def test_a_stop_ends_a_persister_that_waits_for_its_servers(tmp_path: Path) -> None:
    settings = load_settings(redis_url=f"unix://{tmp_path}/r", database_url=f"postgresql://t@/t?host={tmp_path}")
    stop = asyncio.Event()
    task = asyncio.create_task(persist.run(settings, stop))
    await asyncio.sleep(0.05)
    assert not task.done(), "it waits for its servers"
    stop.set()
    _, waiting = await asyncio.wait([task], timeout=30)
    assert not waiting
    task.result()


async def test_nothing_is_lost_or_doubled_when_redis_and_postgres_fail_in_turn(tmp_path: Path) -> None:
    """Calls go on while Redis forgets all, Postgres stops and comes back, Redis is killed, the persister is killed."""
    with ExitStack() as servers:
        redis_url = servers.enter_context(embedded_redis(tmp_path))
        with embedded_postgres(tmp_path, durable=False) as database_url:
            upgrade(database_url)
        settings = load_settings(redis_url=redis_url, database_url=database_url, expiry_s=0.5)
        emitted = 0

        def say(writer: EventWriter, count: int) -> None:
            nonlocal emitted
            for _ in range(count):
                emitted += 1
                writer.emit(f"call {emitted % 3}", 1, said(emitted, final=False))
                writer.emit(f"call {emitted % 3}", 1, said(emitted))

        async with open_redis(redis_url) as redis, writing(redis) as writer:
            async with persisting(settings):  # Postgres is away from the start
                say(writer, 20)
                await until(lambda: writer.unsent == 0, "Redis has them")
                await redis.flushall()
                say(writer, 20)
                with embedded_postgres(tmp_path, durable=False):
                    await until(lambda: writer.unsaved == 0, "what came before and after is saved")
                    say(writer, 20)
                say(writer, 20)  # Postgres is away again, perhaps in the middle of a batch
                await redis.flushall()
                say(writer, 20)
                os.kill(await redis_pid(redis), signal.SIGKILL)  # it is started again
                say(writer, 20)
                with embedded_postgres(tmp_path, durable=False):
                    await until(lambda: writer.unsaved == 0, "all is saved, whatever happened")
            with embedded_postgres(tmp_path, durable=False):
                say(writer, 20)
                await until(lambda: writer.unsent == 0, "Redis has the last ones")
                await kill_a_persister_at_work(settings)
                async with persisting(settings):
                    await until(lambda: writer.unsaved == 0, "the next persister has saved all")
        with embedded_postgres(tmp_path, durable=False):
            store = Store(database_url)
            heard = [each for n in range(3) for each in await store.utterances(f"call {n}")]
            await store.close()
            assert sorted(each.first_k for each in heard) == list(range(1, emitted + 1))
            assert all(each.final and each.text == f"word{each.first_k}" for each in heard)
            assert all([word.text for word in each.words] == [each.text] for each in heard)


async def test_redis_is_killed_in_the_middle_of_writes_with_its_data_gone_and_nothing_is_lost_or_doubled(
        tmp_path: Path, store: Store, database_url: str) -> None:
    said = 0
    over = asyncio.Event()

    async def talk(writer: EventWriter) -> None:
        nonlocal said
        while not over.is_set():
            for _ in range(5):
                said += 1
                writer.emit(f"call {said % 7}", 1, LineNoted("key", "remote", str(said), "", said))
            await asyncio.sleep(0.002)

    with embedded_redis(tmp_path) as redis_url:
        settings = load_settings(redis_url=redis_url, database_url=database_url, expiry_s=0.5)
        async with open_redis(redis_url) as redis, persisting(settings), writing(redis) as writer:
            talking = asyncio.create_task(talk(writer))
            for _ in range(4):
                before = said
                await until(lambda before=before: said > before + 200, "more is said")  # type: ignore[misc]
                pid = await redis_pid(redis)
                for file in (tmp_path / "redis").glob("appendonly*"):
                    file.unlink()
                os.kill(pid, signal.SIGKILL)
                await until_asked(lambda pid=pid: _is_another(redis, pid), "Redis is back")  # type: ignore[misc]
                assert await redis.dbsize() < 100
            over.set()
            await talking
            await until(lambda: writer.unsaved == 0, "all is saved")
    kept = [row.text for n in range(7) for row in await store.line_events(f"call {n}")]
    assert sorted(map(int, kept)) == list(range(1, said + 1))


async def _is_another(redis: Redis, pid: int) -> bool:
    with suppress(RedisError, OSError):
        return await redis_pid(redis) != pid
    return False


async def redis_pid(redis: Redis) -> int:
    return int((await redis.info("server"))["process_id"])


async def kill_a_persister_at_work(settings: Settings) -> None:
    """Starts one as a process of its own, holds its transaction up by a lock, and kills it there."""
    assert settings.redis_url is not None
    assert settings.database_url is not None
    environment = {**os.environ, "TANDEM_REDIS_URL": settings.redis_url.get_secret_value(),
                   "TANDEM_DATABASE_URL": settings.database_url.get_secret_value()}
    program = ("import asyncio; from calls import persist; from calls.settings import load_settings;"
               "asyncio.run(persist.run(load_settings(), asyncio.Event()))")
    url = environment["TANDEM_DATABASE_URL"]
    with closing(psycopg.connect(url)) as lock, closing(psycopg.connect(url, autocommit=True)) as watch:
        lock.execute("LOCK TABLE utterances IN ACCESS EXCLUSIVE MODE")
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)

        async def is_at_work() -> bool:
            assert child.returncode is None
            return watch.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (0,)

        try:
            await until_asked(is_at_work, "it waits for the lock")
        finally:
            child.kill()
            await child.wait()
