from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls import live
from calls.connect import open_redis
from calls.events import CallAnswered, CallEnded, EndReason, Envelope, Series, decode
from calls.live import (
    PARTITIONS,
    Entry,
    EventReader,
    EventWriter,
    Pause,
    dead_key,
    floors_of,
    partition_of,
    stream_key,
)
from tandem.embedded import embedded_redis

ENDED = CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 0, 0, 0, 0)


def answered(n: int) -> CallAnswered:
    return CallAnswered(f"codec {n}")


def writer_on(redis: Redis, *, kept_events: int = 1000, source: str = "bridge") -> EventWriter:
    return EventWriter(redis, source, kept_events=kept_events, poll_s=0.01)


@asynccontextmanager
async def running(writer: EventWriter) -> AsyncIterator[EventWriter]:
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"never: {what}")


async def read_all(reader: EventReader, count: int) -> list[Entry]:
    found: list[Entry] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += await reader.read(0.1)
    return found


def envelopes(entries: list[Entry]) -> list[Envelope]:
    return [decode(entry.data) for entry in entries]


async def save(reader: EventReader, entries: list[Entry]) -> None:
    """What the persister does with events that Postgres has taken."""
    marks: dict[Series, int] = {}
    for entry in entries:
        assert entry.series is not None
        marks[entry.series] = max(marks.get(entry.series, 0), entry.sequence)
    await reader.publish(marks)
    await reader.ack(entries)


async def test_events_arrive_once_in_the_order_of_each_call(redis: Redis) -> None:
    async with running(writer_on(redis)) as writer:
        sent = [writer.emit(f"call {n % 7}", n // 50, answered(n)) for n in range(100)]
        reader = EventReader(redis, "reader")
        got = envelopes(await read_all(reader, 100))
    assert sorted(got, key=sent.index) == sent
    for call in {each.call for each in sent}:
        assert [each for each in got if each.call == call] == [each for each in sent if each.call == call]
    assert await reader.read(0.0) == []


async def test_sequences_count_from_one_within_call_and_fence(redis: Redis) -> None:
    writer = writer_on(redis)
    emitted = [writer.emit(call, fence, answered(0)) for call, fence in
               (("a", 0), ("a", 1), ("a", 1), ("b", 1), ("a", 0), ("a", 1))]
    assert [(each.call, each.fence, each.sequence) for each in emitted] == [
        ("a", 0, 1), ("a", 1, 1), ("a", 1, 2), ("b", 1, 1), ("a", 0, 2), ("a", 1, 3)]


async def test_a_saved_event_is_kept_no_longer(redis: Redis) -> None:
    async with running(writer_on(redis)) as writer:
        for n in range(5):
            writer.emit("call", 1, answered(n))
        writer.emit("call", 1, ENDED)
        reader = EventReader(redis, "reader")
        entries = await read_all(reader, 6)
        assert writer.unsaved == 6
        await reader.publish({Series("call", "bridge", 1): 4})
        await until(lambda: writer.unsaved == 2, "the first four are forgotten")
        await save(reader, entries)
        await until(lambda: writer.unsaved == 0, "all are forgotten")
    assert not any(partition.calls for partition in writer._partitions)  # nothing grows with the number of calls


async def test_a_watermark_of_another_source_or_fence_says_nothing_about_ours(redis: Redis) -> None:
    async with running(writer_on(redis)) as writer:
        writer.emit("call", 1, answered(0))
        writer.emit("call", 2, answered(0))
        reader = EventReader(redis, "reader")
        await read_all(reader, 2)
        await reader.publish({Series("call", "other", 1): 9, Series("call", "bridge", 2): 1})
        await until(lambda: writer.unsaved == 1, "fence 2 is saved")
        await asyncio.sleep(0.1)
        assert writer.unsaved == 1, "the other source's watermark has saved nothing of ours"
        await reader.publish({Series("call", "bridge", 1): 1})
        await until(lambda: writer.unsaved == 0, "fence 1 is saved")


async def test_watermarks_never_go_back(redis: Redis) -> None:
    reader = EventReader(redis, "reader")
    await reader.publish({Series("call", "bridge", 1): 5})
    await reader.publish({Series("call", "bridge", 1): 3})
    async with running(writer_on(redis)) as writer:
        for n in range(5):
            writer.emit("call", 1, answered(n))
        await until(lambda: writer.unsaved == 0, "all five are saved")
        assert writer.dropped == 0


@pytest.mark.parametrize("loses", ["everything", "its end", "one stream"])
async def test_when_redis_has_lost_events_its_writer_sends_all_that_isnt_saved_again(
        redis: Redis, loses: str) -> None:
    async with running(writer_on(redis)) as writer:
        first = [writer.emit("call", 1, answered(n)) for n in range(3)]
        reader = EventReader(redis, "reader")
        entries = await read_all(reader, 3)
        await save(reader, entries[:1])
        await until(lambda: writer.unsaved == 2, "the first is saved")
        stream = stream_key(partition_of("call"))
        match loses:
            case "everything":
                await redis.flushdb()
            case "its end":  # as after a restart from an older state; the group's place is as old
                await redis.xdel(stream, *[entry.id for entry in entries[1:]])
            case "one stream":
                await redis.delete(stream)
        again = envelopes(await read_all(reader, 2))
        assert again == first[1:]
        last = writer.emit("call", 1, answered(3))
        assert envelopes(await read_all(reader, 1)) == [last]


async def test_a_loss_between_two_sendings_is_noticed_before_the_second(redis: Redis) -> None:
    writer = EventWriter(redis, "bridge", kept_events=1000, poll_s=3600)  # it never asks between sendings
    first = writer.emit("call", 1, answered(0))
    assert await writer.drain(10) == 0
    await redis.flushdb()
    second = writer.emit("call", 1, answered(1))
    assert await writer.drain(10) == 0
    assert envelopes(await read_all(EventReader(redis, "reader"), 2)) == [first, second]


async def test_a_loss_is_noticed_though_the_event_sent_last_is_saved(redis: Redis) -> None:
    one, other = [name for name in map(str, range(1000)) if partition_of(name) == 0][:2]
    async with running(writer_on(redis)) as writer:
        stuck = writer.emit(one, 1, answered(0))
        writer.emit(other, 1, answered(1))
        reader = EventReader(redis, "reader")
        entries = await read_all(reader, 2)
        await save(reader, [entry for entry in entries if entry.series and entry.series.call == other])
        await until(lambda: writer.unsaved == 1, "the last is saved")
        await redis.flushdb()
        assert envelopes(await read_all(reader, 1)) == [stuck]


async def test_what_was_merely_trimmed_isnt_sent_again(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    writer = writer_on(redis)
    writer.emit("call", 1, answered(0))
    assert await writer.drain(10) == 0
    reader = EventReader(redis, "reader")
    await save(reader, await read_all(reader, 1))
    await redis.xtrim(stream_key(partition_of("call")), maxlen=0)
    second = writer.emit("call", 1, answered(1))
    assert await writer.drain(10) == 0
    assert envelopes(await read_all(reader, 1)) == [second]
    assert await reader.read(0.0) == []
    assert caplog.messages == []


async def test_events_wait_while_redis_is_away_and_come_when_it_is_back(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        pass
    async with open_redis(url) as redis, running(writer_on(redis)) as writer:
        sent = [writer.emit("call", 1, answered(n)) for n in range(3)]
        assert await writer.drain(0.05) == 3
        with embedded_redis(tmp_path):
            got = envelopes(await read_all(EventReader(redis, "reader"), 3))
    assert got == sent


async def test_a_writer_that_is_cancelled_ends_whatever_it_is_doing(redis: Redis) -> None:
    chance = random.Random(1)
    for n in range(300):
        writer = EventWriter(redis, f"bridge{n}", kept_events=10, poll_s=0.001)
        task = asyncio.create_task(writer.run())
        writer.emit("call", 1, answered(0))
        await asyncio.sleep(chance.random() * 0.004)
        writer.emit("call", 1, answered(1))
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=30)
        assert done == {task}
        assert task.cancelled()


async def test_a_writer_is_full_at_its_bound_and_drops_the_oldest_at_twice_that(redis: Redis) -> None:
    writer = writer_on(redis, kept_events=4)
    for n in range(3):
        writer.emit("call", 1, answered(n))
    assert not writer.full
    for n in range(3, 8):
        writer.emit("call", 1, answered(n))
    assert (writer.full, writer.unsaved, writer.dropped) == (True, 8, 0)
    writer.emit("call", 1, answered(8))
    assert (writer.unsaved, writer.dropped) == (8, 1)
    assert await writer.drain(10) == 0
    entries = await read_all(EventReader(redis, "reader"), 8)
    assert [entry.sequence for entry in entries] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert floors_of(entries) == {Series("call", "bridge", 1): 2}  # nobody waits for the first


async def test_a_full_stream_makes_writers_wait_and_loses_nothing(
        redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_STREAM_ENTRIES", 4)
    monkeypatch.setattr(live, "STREAM_KEPT_S", -1.0)  # saved events leave the stream at once
    monkeypatch.setattr(live, "SENT_AT_ONCE", 2)
    async with running(writer_on(redis)) as writer:
        sent = [writer.emit("call", 1, answered(n)) for n in range(10)]
        await until(lambda: writer.unsent == 6, "the stream is full")
        reader, got = EventReader(redis, "reader"), list[Envelope]()
        while len(got) < 10:
            entries = await read_all(reader, 1)
            got += envelopes(entries)
            await save(reader, entries)
            assert await redis.xlen(stream_key(partition_of("call"))) <= 4
    assert got == sent


async def test_what_is_acknowledged_leaves_its_stream_after_a_while_and_nothing_else_does(
        redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_on(redis)
    for n in range(4):
        writer.emit("call", 1, answered(n))
    await writer.drain(10)
    stream = stream_key(partition_of("call"))
    reader = EventReader(redis, "reader")
    entries = await read_all(reader, 4)
    await reader.ack(entries[:1] + entries[2:3])
    assert await redis.xlen(stream) == 4  # for those who follow the call live
    monkeypatch.setattr(live, "STREAM_KEPT_S", -1.0)
    await reader.ack(entries[:1])
    left = [id.decode() for id, _ in await redis.xrange(stream)]
    assert left == [entry.id for entry in entries[1:]]  # the second isn't dealt with yet


async def test_what_a_dead_persister_held_comes_to_the_next(redis: Redis) -> None:
    writer = writer_on(redis)
    sent = [writer.emit(f"call {n}", 1, answered(n)) for n in range(50)]
    await writer.drain(10)
    held = await read_all(EventReader(redis, "dead"), 50)
    heir = EventReader(redis, "heir", claim_idle_s=600)
    assert await heir.read(0.0) == []  # the other may still be at work
    for entry in held:
        await redis.xclaim(stream_key(entry.partition), live.GROUP, "dead", 0, [entry.id], idle=601_000)
    heir = EventReader(redis, "heir", claim_idle_s=600)
    got = envelopes(await read_all(heir, 50))
    assert sorted(got, key=sent.index) == sent


async def test_two_persisters_share_the_events(redis: Redis) -> None:
    writer = writer_on(redis)
    for n in range(live.READ_AT_ONCE * 2):
        writer.emit("call", 1, answered(n))
    await writer.drain(10)
    one, other = EventReader(redis, "one"), EventReader(redis, "other")
    got = [await one.read(0.0), await other.read(0.0)]
    assert [len(entries) for entries in got] == [live.READ_AT_ONCE, live.READ_AT_ONCE]
    assert {entry.id for entry in got[0]}.isdisjoint({entry.id for entry in got[1]})


async def test_a_persister_that_leaves_is_forgotten_unless_it_holds_something(redis: Redis) -> None:
    async def consumers() -> set[str]:
        return {each["name"].decode() for each in await redis.xinfo_consumers(stream, live.GROUP)}

    stream = stream_key(partition_of("call"))
    writer = writer_on(redis)
    writer.emit("call", 1, answered(0))
    await writer.drain(10)
    reader = EventReader(redis, "reader")
    entries = await read_all(reader, 1)
    await reader.close()
    assert await consumers() == {"reader"}
    await reader.ack(entries)
    await reader.close()
    assert await consumers() == set()


async def test_an_entry_that_isnt_ours_is_read_as_such_and_set_aside_within_bounds(
        redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_DEAD_ENTRIES", 2)
    for key in (b"", b"no key", b"1 x bridge call", b"\xff 1 bridge call"):
        await redis.xadd(stream_key(3), {"key": key, "floor": "1", "event": b"\xff\x00"})
    reader = EventReader(redis, "reader")
    entries = await read_all(reader, 4)
    assert [(entry.series, entry.data) for entry in entries] == [(None, b"\xff\x00")] * 4
    for n, entry in enumerate(entries):
        await reader.set_aside(entry, f"reason {n}")
    assert [fields[b"why"] for _, fields in await redis.xrange(dead_key(3))] == [b"reason 2", b"reason 3"]


async def test_old_watermarks_are_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = EventReader(redis, "reader")
    await reader.publish({Series("call", "bridge", 1): 5})
    keys = live._saved_keys(partition_of("call"))
    assert await redis.hlen(keys[0]) == 1
    monkeypatch.setattr(live, "WATERMARK_KEPT_S", -1.0)
    await reader.publish({Series("call", "bridge", 2): 5})
    assert (await redis.hlen(keys[0]), await redis.zcard(keys[1])) == (0, 0)


@pytest.mark.parametrize("call", ["", "a\0b", "a\nb"])
async def test_a_call_without_a_proper_name_is_refused(redis: Redis, call: str) -> None:
    with pytest.raises(ValueError, match="call: a printable name"):
        writer_on(redis).emit(call, 1, ENDED)


async def test_a_source_with_spaces_is_refused(redis: Redis) -> None:
    with pytest.raises(ValueError, match="source: a name without spaces"):
        writer_on(redis, source="my bridge")


async def test_draining_without_redis_ends_in_time_and_says_how_many_are_unsent(tmp_path: Path) -> None:
    async with open_redis(f"unix://{tmp_path}/nobody.sock") as nowhere:
        writer = writer_on(nowhere)
        writer.emit("call", 1, ENDED)
        assert await writer.drain(0.1) == 1
        with pytest.raises(RedisError):
            await EventReader(nowhere, "reader").read(0.0)


def test_calls_spread_over_all_partitions_and_a_call_stays_in_its_own() -> None:
    found = [partition_of(f"call {n}") for n in range(1000)]
    assert set(found) == set(range(PARTITIONS))
    assert partition_of("123456789") == 0xCBF43926 % PARTITIONS  # the check value of CRC-32


def test_pauses_double_up_to_their_bound_and_start_over() -> None:
    pause = Pause(1.0, 5.0)
    for expected in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert 0.75 * expected <= pause.next_s() <= expected
    pause.reset()
    assert pause.next_s() <= 1.0
