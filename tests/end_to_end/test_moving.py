"""A call with nano gets to another worker, because the one it is at drains, then because one is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil
from redis.asyncio import Redis
from served import Served, serving

from calls.connect import as_text, open_redis
from calls.controls import Control, Controls
from calls.routing import health
from calls.store import Store, UtteranceRow
from sip.phone import phone
from tandem.embedded import running_postgres, running_redis

GREETED_S = 6.0
SECONDS = 36.0  # two commands begin and end within them, on a machine that has other things to do


@contextlib.contextmanager
def another_worker(served: Served) -> Iterator[int]:
    """A second worker beside a Tandem's own; its process."""
    data = served.folder / "data"
    environment = {**served.environment, "TANDEM_REDIS_URL": running_redis(data),
                   "TANDEM_SECRET": (data / "secret").read_text()}
    process = subprocess.Popen([sys.executable, "-m", "tandem", "worker"], cwd=served.folder, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while served.health()["workers"] != 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def _workers(served: Served, other: int) -> list[int]:
    own = [child.pid for child in psutil.Process(served.process.pid).children(recursive=True)
           if "worker" in child.cmdline()]
    return [*own, other]


async def _running(redis: Redis) -> str:
    async with asyncio.timeout(20):
        while True:
            async for key in redis.scan_iter("tandem:{call *}:bridge"):
                return as_text(key).removeprefix("tandem:{call ").removesuffix("}:bridge")
            await asyncio.sleep(0.05)


def _has_the_call(pids: list[int], port: int) -> int:
    """Of these workers the one that a SIP process is connected to."""
    [pid] = [pid for pid in pids if any(
        connection.status == "ESTABLISHED" and connection.laddr.port in _listens(pid)
        for connection in psutil.Process(pid).net_connections("tcp"))]
    return pid


def _listens(pid: int) -> set[int]:
    return {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp")
            if connection.status == "LISTEN"}


async def test_a_call_leaves_a_worker_that_drains_unheard_and_outlives_the_next_one_with_its_memory() -> None:
    with serving(model="nano", echo_slots=0) as served, another_worker(served) as other:
        async with open_redis(running_redis(served.folder / "data")) as redis:
            talk = asyncio.create_task(phone(served.uri("agent"), seconds=SECONDS, codec="pcmu"))
            call = await _running(redis)
            await asyncio.sleep(GREETED_S)
            pids = _workers(served, other)
            drained = _has_the_call(pids, served.sip_port)
            [name] = [worker.worker for worker in (await health(redis)).workers
                      if int(worker.url.rsplit(":", 1)[1]) in _listens(drained)]
            done = await asyncio.to_thread(served.tandem, "drain", name)
            assert done.returncode == 0, done.stderr
            assert "takes no new calls and has none" in done.stdout
            assert psutil.pid_exists(drained), "it stays, for an operator to look at"
            await asyncio.to_thread(served.tandem, "drain", name, "--off")
            killed = _has_the_call(pids, served.sip_port)
            assert killed != drained
            os.kill(killed, signal.SIGKILL)
            controls, line = Controls(redis), Control(call, "say", "Sorry, please go on.", by="test")
            await controls.give(line)
            result = await controls.result(line, 15)
            assert result is not None
            assert result.outcome == "said"
            report = await talk
        assert report.hung_up_by == "us", "the call outlived its worker"
        store = Store(running_postgres(served.folder / "data"))
        async with asyncio.timeout(15):
            while (row := await store.call(call)) is None or row.ended_at is None:
                await asyncio.sleep(0.1)
            while (recording := await store.recording(call)) is None:  # it is encoded after the call
                await asyncio.sleep(0.1)
        left, lost = await store.moves(call)
        words = _agents(await store.utterances(call))
        await store.close()
        assert (left.why, lost.why) == ("draining", "closed")
        assert (left.worker_before, left.worker) == (lost.worker, lost.worker_before)
        assert left.seconds < 0.4, "nobody hears it"
        assert lost.seconds < 5
        assert GREETED_S / 0.08 * 0.7 < left.steps < lost.steps
        assert " ".join(words).lower().count("hello") == 1, words
        assert "please" in " ".join(words).lower()
        assert abs(recording.seconds - report.seconds) < 1


async def test_an_agent_whose_worker_is_killed_in_the_middle_of_a_sentence_says_all_of_it() -> None:
    with serving(model="nano", echo_slots=0) as served, another_worker(served) as other:
        async with open_redis(running_redis(served.folder / "data")) as redis:
            talk = asyncio.create_task(phone(served.uri("agent"), seconds=8.0, codec="pcmu"))
            call = await _running(redis)
            store = Store(running_postgres(served.folder / "data"))
            async with asyncio.timeout(15):
                while not _agents(await store.utterances(call)):  # the first word of its greeting
                    await asyncio.sleep(0.05)
            os.kill(_has_the_call(_workers(served, other), served.sip_port), signal.SIGKILL)
            await talk
        async with asyncio.timeout(15):
            while (row := await store.call(call)) is None or row.ended_at is None:
                await asyncio.sleep(0.1)
        [moved] = await store.moves(call)
        words = _agents(await store.utterances(call))
        await store.close()
        assert moved.why == "closed"
        assert moved.steps < 45, "the greeting was over before"
        assert " ".join(words) == "Casa Tandem, hello. How can I help you?"


def _agents(utterances: Sequence[UtteranceRow]) -> list[str]:
    return [word.text for one in utterances if one.speaker == "agent" for word in one.words]
