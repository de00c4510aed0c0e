"""Many browser calls on one WebRTC process: `make soak`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from call_fakes import FakeWorker
from redis.asyncio import Redis
from web_bench import ABOUT, all_events, role, worker_lives
from web_peer import WebPeer, on_loopback, wait_for

from calls.events import CallEnded, EndReason
from calls.offers import Offers

CALLS = 200
AT_ONCE = 4
WARM_UP = 200  # after which memory has its shape
GROWTH_KB_A_CALL = 60  # at most; what it was is printed


async def connect_and_leave(offers: Offers, number: int) -> None:
    """One call that hears something; the page hangs up, or its server does."""
    peer = WebPeer()
    answer = await offers.call(await peer.offer(), **ABOUT)
    assert not answer.error, answer
    await peer.take(answer.sdp)
    await peer.connected()
    await wait_for(lambda: len(peer.heard) > 5)
    if number % 2:
        peer.say(type="hangup")
        await wait_for(lambda: "ended" in peer.states)
    else:
        assert not (await offers.end(answer.bridge, answer.call)).error
    await peer.close()


@pytest.mark.soak
async def test_200_connects_and_disconnects_leave_nothing_behind(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    on_loopback(monkeypatch)
    async with FakeWorker(slots=8) as worker, role(redis, redis_url, tmp_path) as process:
        await worker_lives(redis, worker)
        offers, watched = Offers(redis), psutil.Process(process.pid)

        async def calls(count: int) -> None:
            for at in range(0, count, AT_ONCE):
                await asyncio.gather(*(connect_and_leave(offers, at + each) for each in range(AT_ONCE)))
            await wait_for(lambda: worker.used == 0)
            await asyncio.sleep(3)  # the last recordings are being kept

        await calls(WARM_UP)
        threads, files, memory = watched.num_threads(), watched.num_fds(), watched.memory_info().rss
        await calls(CALLS)
        growth_kb = (watched.memory_info().rss - memory) / 1024 / CALLS
        with capsys.disabled():
            print(f"\n{CALLS} calls: memory grew {growth_kb:.1f} kB a call, {watched.num_fds() - files} files, "
                  f"{watched.num_threads() - threads} threads")
        assert watched.num_fds() <= files
        assert watched.num_threads() <= threads + 4, "those that write to disk, at most six"
        assert growth_kb < GROWTH_KB_A_CALL
        ends = [each.event for each in await all_events(redis) if isinstance(each.event, CallEnded)]
        assert len(ends) == WARM_UP + CALLS
        assert {end.reason for end in ends} == {EndReason.CALLER_HUNG_UP}
        assert not await redis.keys("tandem:*:leases")
