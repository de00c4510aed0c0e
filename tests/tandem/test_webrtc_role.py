"""`tandem webrtc` as a process, or several."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
from call_fakes import FakeWorker
from redis.asyncio import Redis
from web_bench import ABOUT, role, worker_lives
from web_peer import WebPeer, on_loopback, wait_for

from calls.offers import Offers
from calls.routing import health


async def test_two_processes_share_the_calls_and_one_that_dies_comes_back(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_loopback(monkeypatch)
    async with FakeWorker() as worker, role(redis, redis_url, tmp_path, 2, expiry_s=1, heartbeat_s=0.2) as process:
        await worker_lives(redis, worker)
        offers, peers = Offers(redis), [WebPeer(), WebPeer()]
        bridges = set()
        for peer in peers:
            answer = await offers.call(await peer.offer(), **ABOUT)
            assert not answer.error, answer
            bridges.add(answer.bridge)
            await peer.take(answer.sdp)
            await peer.connected()
        assert len(bridges) == 2, "each has one"
        await asyncio.gather(*(wait_for(lambda peer=peer: len(peer.heard) > 10) for peer in peers))  # type: ignore[misc]
        child, *_ = psutil.Process(process.pid).children()
        os.kill(child.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while {bridge.bridge for bridge in (await health(redis)).bridges} == bridges:
                await asyncio.sleep(0.05)
            while len((await health(redis)).bridges) < 2 or child.is_running():
                await asyncio.sleep(0.05)
        await asyncio.gather(*(peer.close() for peer in peers))


async def test_an_address_that_is_not_ours_stops_the_role_with_one_line(
    redis: Redis, redis_url: str, tmp_path: Path,
) -> None:
    with pytest.raises(AssertionError, match="tandem: TANDEM_WEBRTC_HOST: can't listen on 192.0.2.99"):
        async with role(redis, redis_url, tmp_path, webrtc_host="192.0.2.99"):
            pass
