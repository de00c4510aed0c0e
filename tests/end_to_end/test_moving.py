"""Nano's calls get to another worker: because theirs drains, is told to end, doesn't keep up, or is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from bare_phone import BarePhone, calling
from fleet import Fleet, fleet, wait_for, worker_beside
from redis.asyncio import Redis

from calls.connect import as_text, open_redis
from calls.controls import Control, Controls
from calls.routing import health
from calls.store import MoveRow, Store
from sip.phone import PhoneReport, phone
from tandem.embedded import running_postgres, running_redis

GREETED_S = 4.0
LONGEST_S = 90.0  # of a call that is hung up when all is done
UNHEARD_S = 0.5


@pytest.fixture(scope="module")
def machines() -> Iterator[Fleet]:
    with fleet(model="nano", slots=2, echo_slots=3, rtp_port=34000, drain_s=10, expiry_s=2) as running:
        yield running


@contextlib.asynccontextmanager
async def redis_of(machines: Fleet) -> AsyncIterator[Redis]:
    async with open_redis(running_redis(machines.served.folder / "data")) as redis:
        yield redis


async def _running(redis: Redis) -> str:
    async with asyncio.timeout(20):
        while True:
            async for key in redis.scan_iter("tandem:{call *}:bridge"):
                return as_text(key).removeprefix("tandem:{call ").removesuffix("}:bridge")
            await asyncio.sleep(0.05)


async def _where(machines: Fleet, workers: list[int]) -> int:
    """The one of these workers that has the call."""
    return await asyncio.to_thread(
        wait_for, lambda: next((worker for worker in workers if machines.call_on(worker)), 0))


async def _name(redis: Redis, machines: Fleet, worker: int) -> str:
    return next(one.worker for one in (await health(redis)).workers
                if int(one.url.rsplit(":", 1)[1]) in machines.ports(worker))


async def _until_heard(redis: Redis, call: str, line: str) -> None:
    """The agent has said this."""
    control = Control(call, "say", line, by="test")
    await Controls(redis).give(control)
    result = await Controls(redis).result(control, 20)
    assert result is not None
    assert result.outcome == "said"


async def test_a_call_leaves_a_worker_that_drains_unheard_and_outlives_the_next_one_with_its_memory(
        machines: Fleet) -> None:
    served = machines.served
    async with redis_of(machines) as redis:
        talk: asyncio.Task[PhoneReport] = asyncio.create_task(
            phone(served.uri("agent"), seconds=LONGEST_S, codec="pcmu"))
        call = await _running(redis)
        await asyncio.sleep(GREETED_S)
        drained = await _where(machines, machines.workers)
        [killed] = set(machines.workers) - {drained}
        name = await _name(redis, machines, drained)
        done = await asyncio.to_thread(served.tandem, "drain", name)
        assert done.returncode == 0, done.stderr
        assert "takes no new calls and has none" in done.stdout
        assert psutil.pid_exists(drained), "it stays, for an operator to look at"
        assert await _where(machines, machines.workers) == killed
        done = await asyncio.to_thread(served.tandem, "drain", name, "--off")
        assert "takes calls again" in done.stdout
        await _until_heard(redis, call, "So far, so good.")
        os.kill(killed, signal.SIGKILL)
        await _until_heard(redis, call, "Sorry, please go on.")
        await Controls(redis).give(Control(call, "hang_up", by="test"))
        report = await talk
    assert report.hung_up_by == "them"
    store = Store(running_postgres(served.folder / "data"))
    row = await asyncio.to_thread(wait_for, lambda: next(
        (row for row in machines.rows() if row.id == call and row.ended_at), None), 20)
    assert row.end_reason == "operator_hung_up", "the call outlived its workers"
    left, lost = await store.moves(call)
    words = " ".join(word.text for one in await store.utterances(call) if one.speaker == "agent" for word in one.words)
    recording = await asyncio.to_thread(wait_for, lambda: machines.recording(call), 20)
    await store.close()
    assert (left.why, lost.why) == ("draining", "closed")
    assert (left.worker_before, left.worker) == (lost.worker, lost.worker_before)
    assert left.seconds < 0.4, "nobody hears it"
    assert lost.seconds < 5
    assert left.steps < lost.steps
    assert words.lower().count("hello") == 1, "it greets once"
    assert "So far, so good." in words
    assert "Sorry, please go on." in words
    assert abs(recording.seconds - report.seconds) < 1


def _moves(machines: Fleet, phone: BarePhone) -> list[MoveRow]:
    row = wait_for(lambda: machines.row(phone.reference), 20)
    return list(machines.moves(row.id))


def test_a_worker_that_is_told_to_end_has_its_calls_go_elsewhere_and_ends(machines: Fleet) -> None:
    """As a deploy does it: the new one is there, the old one gets SIGTERM."""
    with worker_beside(machines.served, count=_workers(machines) + 1) as newest, contextlib.ExitStack() as calls:
        phones = [calls.enter_context(calling(machines.served.uri("echo"))) for _ in range(4)]
        for each in phones:
            each.wait_for_sound(each.answered_at)
        assert machines.call_on(newest)
        began = time.monotonic()
        os.kill(newest, signal.SIGTERM)
        wait_for(lambda: psutil.Process(newest).status() == psutil.STATUS_ZOMBIE)
        time.sleep(1.0)
        assert max(each.longest_silence(began) for each in phones) < UNHEARD_S, "nobody hears it"
    assert sorted(move.why for each in phones for move in _moves(machines, each)) == ["draining"]


def _workers(machines: Fleet) -> int:
    """How many there are, once those that start again are back."""
    alive = psutil.pid_exists(machines.other) and psutil.Process(machines.other).status() != psutil.STATUS_ZOMBIE
    wait_for(lambda: machines.healthy(workers=1 + alive), 30)
    return 1 + alive


@contextlib.contextmanager
def _little_time(process: int) -> Iterator[None]:
    """The process runs for a part of each 60 ms only, as on a machine that has too much to do."""
    over = threading.Event()

    def halt() -> None:
        while not over.is_set():
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.055)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.005)

    thread = threading.Thread(target=halt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_worker_that_doesnt_keep_up_turns_new_calls_away_and_has_one_go_elsewhere(machines: Fleet) -> None:
    with (worker_beside(machines.served, count=_workers(machines) + 1) as slow, calling(machines.served.uri("agent")),
          calling(machines.served.uri("agent")), calling(machines.served.uri("agent"))):
        wait_for(lambda: machines.call_on(slow))
        with _little_time(slow):
            wait_for(lambda: machines.overloaded(), 20)
            wait_for(lambda: not machines.call_on(slow), 20)
    rows = [row for row in machines.rows()[:3] if row.model == "nano"]
    moves = [move for row in rows for move in machines.moves(row.id)]
    assert [move.why for move in moves] == ["overloaded"]
