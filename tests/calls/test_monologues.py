"""What agents write, for those who watch: told while somebody does, through a real Redis, and kept nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from persisting import RECEIVED, writing
from redis.asyncio import Redis

from agent.moshi import text
from agent.step import TextMode
from calls import follow, wire
from calls.events import Envelope
from calls.follow import LiveEvents, Watcher
from calls.monologues import KEPT, STREAM, WATCHED, Batch, LastWritten, MonologueTeller, Told, Written, batch_of

STEP = wire.Step(0, wire.PAD, wire.PAD, 0, (), (), -1, (), 0.0, 0.0, 0.0, 0, 0)
PAD = Written(0, "pad", "", "free", False, "pad", "")


def _written(*given: tuple[int, int, int, int, str, str]) -> tuple[Written, ...]:
    """Of steps (k, text, sampled, mode, piece, sampled's piece), whose pieces are told before them."""
    last = LastWritten()
    for k, taken, sampled, mode, piece, wanted in given:
        if piece or wanted:
            last.text(wire.Text(k, "agent", piece=piece, sampled=wanted))
        last.step(replace(STEP, k=k, text=taken, sampled_text=sampled, mode=mode))
    return last.take()


def test_the_wires_tokens_are_the_models() -> None:
    assert (wire.PAD, wire.EPAD) == (text.PAD, text.EPAD)
    assert max(TextMode) <= wire.TEXT_MODE
    assert wire.TEXT_MODE & (wire.FORCED | wire.MUTED) == 0


def test_each_frame_tells_what_was_taken_how_and_what_the_model_wanted() -> None:
    pad, epad = wire.PAD, wire.EPAD
    assert _written(
        (1, pad, pad, 0, "", ""), (2, epad, epad, 0, "", ""), (3, 77, 77, 0, "▁hel", "▁hel"),
        (4, pad, 78, wire.FORCED | wire.MUTED, "", "lo"), (5, 79, pad, TextMode.WORD_ONLY, "▁so", ""),
        (6, 1, 1, 0, "", "")) == (
        Written(1, "pad", "", "free", False, "pad", ""), Written(2, "epad", "", "free", False, "epad", ""),
        Written(3, "piece", "▁hel", "free", False, "piece", "▁hel"),
        Written(4, "pad", "", "forced", True, "piece", "lo"), Written(5, "piece", "▁so", "barred", False, "pad", ""),
        Written(6, "other", "", "free", False, "other", ""))


def test_what_isnt_told_is_forgotten_at_a_bound_and_told_once() -> None:
    last = LastWritten()
    last.text(wire.Text(3, "caller", piece="▁no"))
    last.text(wire.Text(3, "agent", word="no", first_k=1, last_k=2))
    for k in range(2 * KEPT):
        last.step(replace(STEP, k=k))
    assert [frame.k for frame in last.take()] == list(range(KEPT, 2 * KEPT))
    assert last.take() == ()


@pytest.mark.parametrize("fields", [{}, {b"written": b"{}}"}, {b"written": b'{"call": [{"k": 1}]}'}, {"other": "x"}])
def test_an_entry_that_isnt_ours_is_left_out(fields: dict[object, object]) -> None:
    assert batch_of("1-0", fields) is None


@asynccontextmanager
async def bridge(redis: Redis, *calls: str) -> AsyncIterator[MonologueTeller]:
    """Whose calls write PAD."""
    teller, ks = MonologueTeller(redis), iter(range(100_000))

    def take() -> Told:
        k = next(ks)
        return {call: (replace(PAD, k=k),) for call in calls}

    async def beating() -> None:
        while True:
            await teller.look()
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(teller.run(take)), asyncio.create_task(beating())]
    try:
        yield teller
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _batch(watcher: Watcher) -> Batch:
    async with asyncio.timeout(10):
        while not isinstance(came := await watcher.next(), Batch):
            pass
    return came


async def test_a_bridge_tells_while_somebody_watches_and_nothing_before_or_after(
        redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calls.monologues.WATCHED_S", 0.5)
    monkeypatch.setattr(follow, "MARKED_EVERY_S", 0.1)
    monkeypatch.setattr(follow, "BLOCK_S", 0.1)
    live = LiveEvents(redis)
    async with bridge(redis, "call-1", "call-2"), live.watch() as only_events:
        await asyncio.sleep(0.5)
        assert await redis.exists(STREAM, WATCHED) == 0
        async with live.watch("call-1", monologue=True) as one, live.watch(monologue=True) as all_of_them:
            assert set((await _batch(one)).calls) == {"call-1"}
            batch = await _batch(all_of_them)
            assert set(batch.calls) == {"call-1", "call-2"}
            [frame] = batch.calls["call-1"]
            assert frame == replace(PAD, k=frame.k)
            async with live.watch("call-3", monologue=True) as another, writing(redis) as writer:
                writer.emit("call-3", 1, RECEIVED)
                async with asyncio.timeout(10):
                    assert isinstance(await another.next(), Envelope), "nobody's monologue before it"
        async with asyncio.timeout(10):
            while await redis.exists(WATCHED):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.4)
        told = await redis.xlen(STREAM)
        await asyncio.sleep(0.6)
        assert await redis.xlen(STREAM) == told
        assert 0 < await redis.pttl(STREAM) <= 30_000
        assert isinstance(await only_events.next(), Envelope)
        assert only_events._queue.empty()
    await live.close()


async def test_who_doesnt_keep_up_misses_monologues_and_stays() -> None:
    watcher = Watcher("call-1")
    for at in range(1000):
        watcher.put_written(Batch(f"{at}-0", {"call-1": (PAD,), "call-2": (PAD,)}))
    assert watcher._queue.qsize() == follow.WAITING // 2
    assert (await _batch(watcher)).calls == {"call-1": (PAD,)}
