"""A WebRTC process in the tests' own, its worker a stand-in that echoes, Redis a real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from call_fakes import FakeWorker
from redis.asyncio import Redis
from web_peer import Microphone, WebPeer, wait_for

from calls.connect import open_redis
from calls.events import CallEnded, Envelope, decode
from calls.live import PARTITIONS, stream_key
from calls.offers import Answer, Offers
from calls.routing import Heartbeat, WorkerRegistry, health
from calls.settings import Settings
from media.webrtc.bridge import WebBridge
from media.webrtc.call import WebCall

ABOUT = {"agent": "echo", "origin": "https://shop.example", "client": "192.0.2.1", "visitor": "", "reference": "r-1"}


async def all_events(redis: Redis) -> list[Envelope]:
    """Whatever was told of any call, each call's in order."""
    found = []
    for partition in range(PARTITIONS):
        for _, fields in await redis.xrange(stream_key(partition)):
            found += [decode(value) for value in fields.values() if value.startswith(b"{")]
    return sorted(found, key=lambda envelope: (envelope.call, envelope.fence, envelope.sequence))


@dataclass
class WebBench:
    """All that is around browser calls."""

    bridge: WebBridge
    worker: FakeWorker
    redis: Redis
    offers: Offers
    peers: list[WebPeer] = field(default_factory=list)

    def peer(self, microphone: Microphone | None = None, **options: Any) -> WebPeer:
        peer = WebPeer(microphone or Microphone(), **options)
        self.peers.append(peer)
        return peer

    async def call(self, peer: WebPeer, *, connected: bool = True, **about: str) -> str:
        """The id of a new call of `peer`'s."""
        answer = await self.offers.call(await peer.offer(), **(ABOUT | about))
        assert not answer.error, answer
        await peer.take(answer.sdp)
        if connected:
            await peer.connected()
        return answer.call

    async def resume(self, call: str, peer: WebPeer) -> Answer:
        answer = await self.offers.offer(self.bridge.name, call, await peer.offer())
        if not answer.error:
            await peer.take(answer.sdp)
            await peer.connected()
        return answer

    def web_call(self, call: str) -> WebCall:
        return self.bridge._by_id[call]

    async def all_events(self) -> list[Envelope]:
        return await all_events(self.redis)

    async def events(self, call: str) -> list[Envelope]:
        return [envelope for envelope in await self.all_events() if envelope.call == call]

    async def ended(self, call: str, timeout_s: float = 10.0) -> CallEnded:
        async with asyncio.timeout(timeout_s):
            while True:
                for envelope in await self.events(call):
                    if isinstance(envelope.event, CallEnded):
                        return envelope.event
                await asyncio.sleep(0.02)

    async def nothing_left(self) -> None:
        await wait_for(lambda: not self.bridge._calls)
        await wait_for(lambda: self.worker.used == 0)
        assert not self.bridge._by_id


async def worker_lives(redis: Redis, worker: FakeWorker) -> None:
    models = {"echo": (worker.slots, 0), "nano": (worker.slots, 0)}
    await WorkerRegistry(redis, expiry_s=600).beat(Heartbeat("w-1", "e-1", worker.url, models, draining=False))


@contextlib.asynccontextmanager
async def running(redis: Redis, redis_url: str, data_dir: Path, **given: Any) -> AsyncIterator[WebBench]:
    """Ends with all calls ended and nothing left of them."""
    async with open_redis(redis_url) as own, FakeWorker() as worker:
        await worker_lives(redis, worker)
        usual = {"webrtc_calls": 3, "drain_s": 0.2, "move_within_s": 0.5}
        bridge = WebBridge(Settings(data_dir=data_dir, **(usual | given)), own, b"s" * 32)
        running = asyncio.create_task(bridge.run())
        bench = WebBench(bridge, worker, redis, Offers(redis))
        async with asyncio.timeout(5):
            while not (await health(redis)).bridges:
                await asyncio.sleep(0.01)
                if running.done():
                    running.result()
        yield bench
        for peer in bench.peers:
            await peer.close()
        bridge.stop()
        bridge.stop()
        async with asyncio.timeout(20):
            await running
        await bench.nothing_left()


@contextlib.asynccontextmanager
async def role(
    redis: Redis, redis_url: str, folder: Path, processes: int = 1, **settings: object,
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A `tandem webrtc` of its own, ready, with a Tandem's worker elsewhere. Ends in order, and nothing stays."""
    given = {"redis_url": redis_url, "secret": "s" * 32, "data_dir": folder, "drain_s": 0.2,
             "webrtc_processes": processes, **settings}
    environment = {**os.environ, **{f"TANDEM_{name.upper()}": str(value) for name, value in given.items()}}
    log = folder / "role.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "tandem", "webrtc"], env=environment, stdout=file, stderr=file)
    try:
        async with asyncio.timeout(30):
            while len((await health(redis)).bridges) < processes:
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        yield process
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
        assert not [child for child in children if child.is_running()]
        assert not (await health(redis)).bridges
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
