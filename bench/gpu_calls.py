"""Calls on one worker over real links: `python -m bench.gpu_calls`, 64 of them on a GPU by default.

A worker with random weights of Moshi's shape, speech-to-text (1B) beside it, and processes that each hold some of the
calls: a WebSocket to `/api/call` a call, as bridges open it, a frame of sound every 80 ms on its own clock, in phase
with the worker's boundaries as bridges are. A frame is on time if the agent's frame for it is back within 80 ms. With
--aged the calls are as old as their context from the start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from redis.asyncio import Redis

from agent.engine import MoshiEngine
from agent.models import PAGE_FRAMES, capture_on
from agent.moshi.kv import KVSettings
from agent.worker import Served, Worker
from bench.gpu import AgedEngine, arguments, device_named, give_back
from bench.gpu_models import SHAPES, Way, make, ways
from calls import wire
from calls.connect import open_redis
from calls.routing import Lease, sign_lease
from calls.settings import Settings
from media.audio import CHUNK_S, FRAME_BYTES, FRAME_S
from media.framing import Framer, leading_chunks
from media.worker_link import WorkerLink
from tandem.embedded import embedded_redis

MODEL = "bench"
SECRET = b"nobody's secret, but long enough for one"
SETTLE_S = 2.0  # frames of this first part are left out
CALLS_A_PROCESS = 8


async def one_call(url: str, call: str, token: str, seconds: float) -> list[float | None]:
    """Seconds from each frame to the agent's frame for it, in order; None where none came."""
    loop = asyncio.get_running_loop()
    link = await WorkerLink.open(url, call, token, timeout_s=30)
    sent: dict[int, float] = {}
    back: dict[int, float] = {}

    async def listen() -> None:
        async for message in link.messages():
            if isinstance(message, wire.Audio):
                back[message.k] = loop.time()

    listening = asyncio.create_task(listen())
    tick_at = (loop.time() // CHUNK_S + 1) * CHUNK_S
    framer = Framer(leading_chunks(link.boundary_at - tick_at))
    sound = (1000 * np.random.default_rng(0).standard_normal(FRAME_BYTES // 2)).astype("<i2").tobytes()
    while framer.frames * FRAME_S < seconds:
        frame = framer.push(None)
        if frame is not None:
            sent[frame.k] = loop.time()
            link.send_frame(frame.k, sound)
        tick_at += CHUNK_S
        await asyncio.sleep(tick_at - loop.time())
    await link.finish()
    await asyncio.wait([listening], timeout=2)
    await link.close()
    return [back[k] - at if k in back else None for k, at in sorted(sent.items()) if k * FRAME_S >= SETTLE_S]


async def _some_calls(url: str, tokens: dict[str, str], seconds: float) -> None:
    """The calls of this process; prints their frames' times as JSON."""
    frames = await asyncio.gather(*(one_call(url, call, token, seconds) for call, token in tokens.items()))
    print(json.dumps([taken for call in frames for taken in call]))


async def measure(redis: Redis, engine: MoshiEngine, calls: int, seconds: float) -> list[str]:
    """Lines that say how many frames were on time."""
    worker = Worker(Settings(worker_port=0, drain_s=0.1), {MODEL: Served(engine, None)}, redis, SECRET)
    running = asyncio.create_task(worker.run())
    while not worker.url:
        await asyncio.sleep(0.01)
    beat = worker.heartbeat()
    tokens = {f"call-{number}": sign_lease(Lease(f"call-{number}", MODEL, beat.worker, beat.epoch, worker.url, 1,
                                                 time.time() + 60), SECRET) for number in range(calls)}
    names, processes = list(tokens), []
    for first in range(0, calls, CALLS_A_PROCESS):
        part = {name: tokens[name] for name in names[first:first + CALLS_A_PROCESS]}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.gpu_calls", "--part", stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        processes.append((process, json.dumps([worker.url, part, seconds]).encode()))
    said = await asyncio.gather(*(process.communicate(order) for process, order in processes))
    worker.stop()
    await running
    taken: list[float | None] = [each for out, _ in said for each in json.loads(out)]
    came = [each for each in taken if each is not None]
    on_time = sum(each <= FRAME_S for each in came) / max(1, len(taken))
    p50, p99 = (1000 * float(np.quantile(came, share)) for share in (0.5, 0.99))
    return [f"{calls} calls, {len(taken)} frames: {100 * on_time:.2f} % on time, {len(taken) - len(came)} lost; "
            f"from frame to frame p50 {p50:.1f} ms, p99 {p99:.1f} ms: p99 {'on time' if on_time >= 0.99 else 'LATE'}."]


def main() -> None:
    if sys.argv[1:] == ["--part"]:
        url, tokens, seconds = json.loads(sys.stdin.read())
        asyncio.run(_some_calls(url, tokens, seconds))
        return
    parser = arguments(__doc__)
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each call")
    parser.add_argument("--aged", action="store_true", help="calls are as old as the context from the start")
    given = parser.parse_args()
    device = device_named(given.device)
    for way in ways(device):
        for line in _told(given, way, device):
            print(f"{way.name}, {'full' if given.aged else 'empty'} context at first: {line}", flush=True)
        give_back(device)


def _told(given: argparse.Namespace, way: Way, device: torch.device) -> list[str]:
    """The lines of models that are held in one way."""
    agent, stt = make(SHAPES[given.model], way, device)
    try:
        kind = AgedEngine if given.aged else MoshiEngine
        engine = kind(agent, given.calls, stt, capture=capture_on(device),
                      kv=KVSettings(way.kv, page=PAGE_FRAMES if device.type == "cuda" else 0))
        engine.prepare_steps()
    except torch.OutOfMemoryError:
        return [f"{given.calls} calls of full context don't fit"]

    async def run(url: str) -> list[str]:
        async with open_redis(url) as redis:
            return await measure(redis, engine, given.calls, given.seconds)

    with tempfile.TemporaryDirectory() as folder, embedded_redis(Path(folder)) as url:
        return asyncio.run(run(url))


if __name__ == "__main__":
    main()
