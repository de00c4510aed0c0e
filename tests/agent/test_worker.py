from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agent import admission
from agent import worker as worker_module
from agent.engine import EchoEngine, StepInputs, StepOutputs
from agent.worker import Served, Worker
from calls import wire
from calls.draining import NoSuchWorker, order
from calls.routing import Busy, Lease, NoWorker, Router, health, sign_lease
from calls.settings import Settings

SECRET = b"a secret of the tests, 32 bytes long"
FRAME = 1920
SLOTS = 2
STEP = wire.Step(0, 3, 3, 0, (), (), -1, (), 0.0, 0.0, 0.0, 0, 0)  # of the echo

Start = Callable[..., Awaitable[Worker]]


class FailingEngine(EchoEngine):
    """Fails at its third step, as a device that is lost does."""

    steps = 0

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("the device is gone")
        return super().step(inputs)


class StuckEngine(EchoEngine):
    """Its second step doesn't end by itself."""

    steps = 0

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.freed = threading.Event()

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        self.steps += 1
        if self.steps == 2:
            self.freed.wait(20)
        return super().step(inputs)


@pytest.fixture
async def start(redis: Redis) -> AsyncIterator[Start]:
    """Starts workers that are stopped at the test's end."""
    running: list[tuple[Worker, asyncio.Task[None]]] = []

    async def one(engine: EchoEngine | None = None, drain_s: float = 0.2) -> Worker:
        settings = Settings(worker_port=0, drain_s=drain_s, heartbeat_s=0.05)
        worker = Worker(settings, {"echo": Served(engine or EchoEngine(slots=SLOTS), None)}, redis, SECRET)
        running.append((worker, asyncio.create_task(worker.run())))
        async with asyncio.timeout(5):
            while not (await health(redis)).workers:
                await asyncio.sleep(0.01)
        return worker

    yield one
    for worker, task in running:
        worker.stop()
        await asyncio.wait([task], timeout=10)
        assert task.done(), "the worker didn't stop"
        task.exception()


def _token(of: Worker, call: str, fence: int, *, secret: bytes = SECRET, **changed: object) -> str:
    beat = of.heartbeat()
    lease = Lease(**{"call": call, "model": "echo", "worker": beat.worker, "epoch": beat.epoch, "url": beat.url,
                     "fence": fence, "expires": time.time() + 5.0} | changed)
    return sign_lease(lease, secret)


@asynccontextmanager
async def _opened(worker: Worker, call: str = "call", fence: int = 1, token: str | None = None,
                  **fields: object) -> AsyncIterator[tuple[ClientConnection, wire.FromWorker | None]]:
    async with connect(worker.heartbeat().url + wire.PATH, compression=None, proxy=None) as connection:
        await connection.send(wire.encode(wire.Open(call, token or _token(worker, call, fence), **fields)))
        yield connection, await _next(connection)


async def _next(connection: ClientConnection, layout: wire.StepLayout | None = None) -> wire.FromWorker | None:
    async with asyncio.timeout(5):
        data = await connection.recv()
    assert isinstance(data, bytes)
    return wire.decode_from_worker(data, layout)


def _pcm(k: int) -> bytes:
    return np.random.default_rng(k).integers(-20000, 20000, FRAME).astype("<i2").tobytes()


async def test_the_echo_gives_back_each_frame_one_frame_later_with_its_step(start: Start) -> None:
    async with _opened(await start()) as (connection, ready):
        assert isinstance(ready, wire.Ready)
        assert (ready.sample_rate, ready.frame_samples, ready.model) == (24000, FRAME, "echo")
        heard = []
        for k in range(5):
            await connection.send(wire.encode(wire.Audio(k, _pcm(k))))
            audio = await _next(connection)
            step = await _next(connection, ready.layout)
            assert isinstance(audio, wire.Audio)
            assert isinstance(step, wire.Step)
            assert audio.k == step.k == k
            heard.append(audio.pcm)
        assert heard == [bytes(2 * FRAME), *map(_pcm, range(4))]


async def test_a_fresh_call_hears_nothing_of_the_one_before_it_on_its_slot(start: Start) -> None:
    worker = await start()
    for call in ("first", "second"):
        async with _opened(worker, call) as (connection, ready):
            assert isinstance(ready, wire.Ready)
            assert ready.slot == 0
            await connection.send(wire.encode(wire.Audio(0, _pcm(7))))
            assert await _next(connection) == wire.Audio(0, bytes(2 * FRAME))
        async with asyncio.timeout(5):
            while worker.heartbeat().models["echo"][1]:
                await asyncio.sleep(0.01)


async def test_the_call_after_the_last_slot_is_told_that_all_are_taken(start: Start) -> None:
    worker = await start()
    async with _opened(worker, "one"), _opened(worker, "two"), _opened(worker, "three") as (_, answer):
        assert isinstance(answer, wire.Error)
        assert answer.code == "busy"
        assert worker.heartbeat().models["echo"] == (SLOTS, 2)


async def test_a_slot_is_free_again_when_its_bridge_is_cut_off(start: Start) -> None:
    worker = await start()
    async with _opened(worker, "one") as (connection, _):
        connection.transport.abort()
        async with asyncio.timeout(5):
            while worker.heartbeat().models["echo"][1]:
                await asyncio.sleep(0.01)
    async with _opened(worker, "two") as (_, answer):
        assert isinstance(answer, wire.Ready)
        assert answer.slot == 0


async def test_the_lease_of_a_bridge_that_is_cut_off_is_given_back(start: Start, redis: Redis) -> None:
    await start()
    router = Router(redis, SECRET, lease_s=60)
    leases = [await router.acquire(f"call-{number}", "echo") for number in range(SLOTS)]
    with pytest.raises(Busy):
        await router.acquire("one more", "echo")
    async with connect(leases[0].url + wire.PATH, compression=None, proxy=None) as connection:
        await connection.send(wire.encode(wire.Open("call-0", router.token(leases[0]))))
        assert isinstance(await _next(connection), wire.Ready)
        connection.transport.abort()
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(Busy):
                    assert (await router.acquire("one more", "echo")).fence == 1
                    return
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(("changed", "code"), [
    ({"secret": b"somebody else's secret, 32 bytes"}, "bad_token"),
    ({"expires": 1.0}, "bad_token"),
    ({"call": "another"}, "bad_token"),
    ({"epoch": "an earlier life"}, "wrong_worker"),
    ({"worker": "another"}, "wrong_worker"),
    ({"model": "unheard of"}, "unknown_model"),
])
async def test_a_lease_that_doesnt_fit_is_refused(start: Start, changed: dict[str, object], code: str) -> None:
    worker = await start()
    fields = {"call": "call", "fence": 1} | changed
    async with _opened(worker, "call", token=_token(worker, **fields)) as (connection, answer):  # type: ignore[arg-type]
        assert isinstance(answer, wire.Error)
        assert answer.code == code
        with pytest.raises(ConnectionClosed):
            await connection.recv()


async def test_a_token_serves_for_one_connection_and_a_higher_fence_takes_the_call_over(start: Start) -> None:
    worker = await start()
    async with _opened(worker, fence=2) as (old, _):
        for fence in (1, 2):
            async with _opened(worker, fence=fence) as (_, answer):
                assert isinstance(answer, wire.Error)
                assert answer.code == "stale_fence"
        async with _opened(worker, fence=3) as (_, answer):
            assert isinstance(answer, wire.Ready)
            assert await _next(old) == wire.Close(wire.CloseReason.LEASE_LOST)
            with pytest.raises(ConnectionClosed):
                await old.recv()


@pytest.mark.parametrize("message", [
    wire.encode(wire.Audio(0, b"\0\0")), b"\x01", b"\x03{}", wire.encode(wire.Open("again", "")),
    wire.encode(wire.History((), {}), wire.StepLayout(0, 0, 0)),
    "text", wire.encode(wire.Audio(3, bytes(2 * FRAME))) * 2,
])
async def test_what_breaks_the_protocol_ends_the_connection_with_one_error(start: Start, message: bytes | str) -> None:
    async with _opened(await start()) as (connection, _):
        await connection.send(message)
        answer = await _next(connection)
        assert isinstance(answer, wire.Error)
        assert answer.code == "protocol"
        with pytest.raises(ConnectionClosed):
            await connection.recv()


async def test_a_frame_number_that_doesnt_grow_ends_the_connection(start: Start) -> None:
    async with _opened(await start()) as (connection, ready):
        assert isinstance(ready, wire.Ready)
        await connection.send(wire.encode(wire.Audio(5, _pcm(0))))
        assert isinstance(await _next(connection), wire.Audio)
        assert isinstance(await _next(connection, ready.layout), wire.Step)
        await connection.send(wire.encode(wire.Audio(5, _pcm(0))))
        answer = await _next(connection)
        assert isinstance(answer, wire.Error)
        assert "k must grow" in answer.text


async def test_unknown_kinds_are_ignored_pings_answered_controls_told_to_be_unsupported(start: Start) -> None:
    async with _opened(await start()) as (connection, _):
        for message in (b"\xc8whatever", wire.encode(wire.Ping(77)), wire.encode(wire.Control("c1", "speak"))):
            await connection.send(message)
        assert await _next(connection) == wire.Ping(77)
        assert await _next(connection) == wire.Outcome("c1", "unsupported", 0, 0, "this model has no text")


async def test_a_call_as_somebody_is_refused_by_a_model_that_wasnt_taught_that(start: Start) -> None:
    worker = await start()
    async with _opened(worker, persona=wire.Persona("You are a waiter.")) as (_, answer):
        assert isinstance(answer, wire.Error)
        assert (answer.code, answer.text) == ("persona", "the echo isn't anybody")
    async with _opened(worker, "next", fence=1) as (_, ready):
        assert isinstance(ready, wire.Ready)  # and all slots are free


async def test_a_close_is_answered_with_a_close(start: Start) -> None:
    async with _opened(await start()) as (connection, _):
        await connection.send(wire.encode(wire.Close(wire.CloseReason.ENDED)))
        assert await _next(connection) == wire.Close(wire.CloseReason.ENDED)


async def test_only_the_calls_path_is_served(start: Start) -> None:
    worker = await start()
    with pytest.raises(InvalidStatus) as caught:
        async with connect(worker.heartbeat().url + "/other", proxy=None):
            pass
    assert caught.value.response.status_code == 404


async def test_a_draining_worker_turns_new_calls_away_and_lets_running_ones_end(start: Start) -> None:
    worker = await start(drain_s=5.0)
    async with _opened(worker, "old") as (connection, ready):
        assert isinstance(ready, wire.Ready)
        worker.stop()
        assert await _next(connection) == wire.Leave(wire.CloseReason.DRAINING), "it shall go elsewhere"
        async with _opened(worker, "new") as (_, answer):
            assert isinstance(answer, wire.Error)
            assert answer.code == "draining"
        await connection.send(wire.encode(wire.Audio(0, _pcm(0))))
        assert isinstance(await _next(connection), wire.Audio)


async def test_a_call_that_outlasts_the_drain_is_closed(start: Start) -> None:
    worker = await start(drain_s=0.1)
    async with _opened(worker, "old") as (connection, _):
        worker.stop()
        assert await _next(connection) == wire.Leave(wire.CloseReason.DRAINING)
        assert await _next(connection) == wire.Close(wire.CloseReason.DRAINING)


async def test_an_operator_has_a_worker_drain_and_take_calls_again(start: Start, redis: Redis) -> None:
    worker, router = await start(), Router(redis, SECRET, lease_s=60)
    async with _opened(worker, "old") as (connection, _):
        await order(redis, worker.heartbeat().worker[:-2], drain=True)
        assert await _next(connection) == wire.Leave(wire.CloseReason.DRAINING)
        with pytest.raises(NoWorker):
            await router.acquire("new", "echo")
        await order(redis, worker.heartbeat().worker, drain=False)
        async with asyncio.timeout(5):
            while worker.heartbeat().draining:
                await asyncio.sleep(0.01)
        await until_leased(router, "new")


async def test_only_a_worker_that_is_alive_can_be_told_to_drain(start: Start, redis: Redis) -> None:
    await start()
    with pytest.raises(NoSuchWorker, match="no worker 'nobody' is alive"):
        await order(redis, "nobody", drain=True)


class SlowEngine(EchoEngine):
    """Takes longer for a step than a frame lasts."""

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        time.sleep(0.1)
        return super().step(inputs)


async def test_a_worker_that_doesnt_keep_up_says_busy_to_new_calls_and_has_one_go_elsewhere(
        start: Start, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOAD_WINDOW_US", 400_000)
    worker, router = await start(SlowEngine(slots=4)), Router(redis, SECRET, lease_s=60)
    await router.acquire("old", "echo")
    async with _opened(worker, "old", fence=2) as (connection, ready):
        assert isinstance(ready, wire.Ready)

        async def talk() -> None:
            for k in range(1000):
                await connection.send(wire.encode(wire.Audio(k, _pcm(k))))
                await asyncio.sleep(0.08)

        talking = asyncio.create_task(talk())
        try:
            asked = None
            while not isinstance(asked, wire.Leave):
                asked = await _next(connection, ready.layout)
            assert asked.reason is wire.CloseReason.OVERLOADED
            async with asyncio.timeout(5):
                while not (await health(redis)).workers[0].full:
                    await asyncio.sleep(0.01)
            with pytest.raises(Busy):
                await router.acquire("new", "echo")
            async with _opened(worker, "with an old lease") as (_, answer):
                assert isinstance(answer, wire.Error)
                assert answer.code == "busy"
        finally:
            talking.cancel()
        await until_leased(router, "later")


async def until_leased(router: Router, call: str) -> None:
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(Busy, NoWorker):
                await router.acquire(call, "echo")
                return
            await asyncio.sleep(0.01)


async def test_a_call_of_a_model_without_codes_goes_on_where_it_was(start: Start) -> None:
    worker = await start()
    async with _opened(worker, resume=True) as (connection, ready):
        assert isinstance(ready, wire.Ready)
        steps = tuple(replace(STEP, k=k) for k in range(3))
        await connection.send(wire.encode(wire.History(steps, {"heard": 2}), ready.layout))
        for k in (1, 2):
            await connection.send(wire.encode(wire.Audio(k, _pcm(k))))
        await connection.send(wire.encode(wire.Audio(3, _pcm(3))))
        assert await _next(connection) == wire.Audio(3, _pcm(2))


async def test_steps_that_no_model_can_have_made_end_the_connection_and_not_the_worker(start: Start) -> None:
    worker = await start()
    for step, frame in ((STEP, 10), (replace(STEP, text=999), 2 * FRAME), (replace(STEP, text=-1), 2 * FRAME)):
        async with _opened(worker, f"{step.text} {frame}") as (connection, ready):
            assert isinstance(ready, wire.Ready)
            await connection.send(wire.encode(wire.Follow(step, bytes(frame)), ready.layout))
            answer = await _next(connection)
            assert isinstance(answer, wire.Error)
            assert answer.code == "protocol"


async def test_an_engine_that_fails_ends_its_calls_and_the_worker_with_its_error(redis: Redis) -> None:
    settings = Settings(worker_port=0, heartbeat_s=0.05)
    worker = Worker(settings, {"echo": Served(FailingEngine(slots=SLOTS), None)}, redis, SECRET)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(5):
        while not worker.url:
            await asyncio.sleep(0.01)
    async with _opened(worker) as (connection, ready):
        assert isinstance(ready, wire.Ready)
        for k in range(3):
            await connection.send(wire.encode(wire.Audio(k, _pcm(k))))
            if k < 2:
                await _next(connection)
                await _next(connection, ready.layout)
        assert await _next(connection) == wire.Close(wire.CloseReason.FAILED)
    with pytest.raises(RuntimeError, match="the device is gone"):
        await asyncio.wait_for(running, 5)


async def test_a_step_that_doesnt_end_ends_the_worker_so_that_its_calls_go_elsewhere(
        redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "STUCK_S", 0.2)
    engine = StuckEngine(slots=SLOTS)
    worker = Worker(Settings(worker_port=0, heartbeat_s=0.05), {"echo": Served(engine, None)}, redis, SECRET)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(5):
        while not worker.url:
            await asyncio.sleep(0.01)
    async with _opened(worker) as (connection, ready):
        assert isinstance(ready, wire.Ready)
        for k in range(2):
            await connection.send(wire.encode(wire.Audio(k, _pcm(k))))
        answers = [await _next(connection, ready.layout) for _ in range(3)]
        assert answers[2] == wire.Close(wire.CloseReason.FAILED)
        engine.freed.set()
    with pytest.raises(RuntimeError, match="a step of echo has run for"):
        await asyncio.wait_for(running, 10)
