from __future__ import annotations

import asyncio
import contextlib

import pytest
from call_peers import free_port
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as AnswerTimeout

from calls import connect
from calls.connect import open_redis


async def test_a_task_that_is_cancelled_while_it_asks_redis_ends(redis: Redis) -> None:
    async def ask_forever() -> None:
        while True:
            await redis.set("key", "value")
            await asyncio.sleep(0)

    for pause in range(100):
        task = asyncio.create_task(ask_forever())
        await asyncio.sleep(pause / 50_000)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 5)
        assert task.cancelled()


async def test_an_answer_that_was_given_up_is_never_taken_for_another(redis: Redis) -> None:
    await redis.set("number", "seven")
    for _ in range(20):
        slow = asyncio.create_task(redis.blpop(["nothing"], timeout=0.05))  # type: ignore[arg-type]
        await asyncio.sleep(0.001)
        slow.cancel()
        assert await redis.get("number") == b"seven"


async def test_a_redis_that_doesnt_answer_is_an_error_after_a_bounded_time(
    redis: Redis, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "ANSWER_S", 0.05)
    with pytest.raises(AnswerTimeout, match=r"within 0\.05 s"):
        await redis.blpop(["nothing"], timeout=30)  # type: ignore[arg-type]
    monkeypatch.setattr(connect, "ANSWER_S", 5.0)
    assert await redis.ping()


async def test_a_redis_that_isnt_there_is_an_error_at_once() -> None:
    async with open_redis(f"redis://127.0.0.1:{free_port()}") as redis:
        with pytest.raises(NoConnection):
            await redis.ping()
