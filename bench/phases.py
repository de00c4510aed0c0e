"""What calls of random phases cost the worker's device, beside calls that are aligned.

Four bridges talk to a real worker over WebSockets. Each has a 20 ms clock of its own, whose phase is random or the
same for all, and begins its frames as the design says (`media.framing.leading_chunks`). The cost is the device
thread's processor time a frame, which other processes on the machine don't disturb; the two kinds take turns.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from redis.asyncio import Redis

from agent.engine import Engine, ModelInfo, MoshiEngine, Sampling, StepInputs, StepOutputs
from agent.moshi.checkpoint import load_model
from agent.moshi.random_model import LM, MIMI, make_random_model
from agent.worker import Served, Worker
from calls.connect import open_redis
from calls.routing import Lease, sign_lease
from calls.settings import Settings
from media.audio import CHUNK_S, FRAME_BYTES
from media.framing import Framer, leading_chunks
from media.worker_link import WorkerLink
from tandem.embedded import embedded_redis

CALLS = 4
ROUNDS = 5
FRAMES = 75  # of each call and round
SECRET = b"nobody's secret, but long enough for one"
# a small Moshi that a CPU steps in a good part of a frame, as a GPU does the big one
MODEL_LM = LM | {"dim": 256, "num_layers": 6, "num_heads": 8, "depformer_dim": 128, "depformer_num_layers": 2,
                 "depformer_dim_feedforward": 528}
MODEL_MIMI = MIMI | {"seanet": MIMI["seanet"] | {"n_filters": 12}}


@dataclass
class CountingEngine:
    """An engine whose steps and processor time are counted."""

    engine: Engine
    busy_s: float = 0.0
    sizes: list[int] = field(default_factory=list)

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    @property
    def slots(self) -> int:
        return self.engine.slots

    def default_sampling(self, rows: int) -> Sampling:
        return self.engine.default_sampling(rows)

    def release(self, slot: int) -> None:
        self.engine.release(slot)

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        began = time.thread_time()
        outputs = self.engine.step(inputs)
        self.busy_s += time.thread_time() - began
        self.sizes.append(len(inputs.slots))
        return outputs


async def _bridge(worker: Worker, call: str, phase_s: float) -> None:
    """One call of FRAMES frames, its clock's ticks at `phase_s` past every multiple of 20 ms."""
    loop = asyncio.get_running_loop()
    beat = worker.heartbeat()
    lease = Lease(call, "bench", beat.worker, beat.epoch, worker.url, 1, time.time() + 60)
    link = await WorkerLink.open(worker.url, call, sign_lease(lease, SECRET))
    reader = asyncio.create_task(_drain(link))
    tick_at = (loop.time() // CHUNK_S + 1) * CHUNK_S + phase_s
    await asyncio.sleep(tick_at - loop.time())
    framer = Framer(leading_chunks(link.boundary_at - tick_at))
    while framer.frames < FRAMES:
        frame = framer.push(None)
        if frame is not None:
            link.send_frame(frame.k, bytes(FRAME_BYTES))
        tick_at += CHUNK_S
        await asyncio.sleep(tick_at - loop.time())
    await link.finish()
    await asyncio.wait([reader], timeout=2)
    await link.close()


async def _drain(link: WorkerLink) -> None:
    async for _ in link.messages():
        pass


async def _round(worker: Worker, engine: CountingEngine, name: str, phases_s: list[float]) -> tuple[float, float]:
    """(processor ms a frame of a call, calls a step)."""
    engine.busy_s, engine.sizes = 0.0, []
    bridges = []
    for i, phase_s in enumerate(phases_s):
        bridges.append(asyncio.create_task(_bridge(worker, f"{name}-{i}", phase_s)))
        await asyncio.sleep(0.25 + random.random() * 0.08)
    await asyncio.gather(*bridges)
    return 1000 * engine.busy_s / sum(engine.sizes), statistics.mean(engine.sizes)


async def _measure(redis: Redis, engine: CountingEngine) -> list[str]:
    worker = Worker(Settings(worker_port=0, drain_s=0.1), {"bench": Served(engine, None)}, redis, SECRET)
    running = asyncio.create_task(worker.run())
    while not worker.url:
        await asyncio.sleep(0.01)
    draw = random.Random(1)
    aligned, mixed = [], []
    for number in range(ROUNDS):
        aligned.append(await _round(worker, engine, f"aligned-{number}", [0.0] * CALLS))
        mixed.append(await _round(worker, engine, f"random-{number}", [draw.random() * CHUNK_S for _ in range(CALLS)]))
    worker.stop()
    await running
    ratio = statistics.median(two[0] / one[0] for one, two in zip(aligned, mixed, strict=True))
    rows = [f"| {name} | {statistics.median(cost for cost, _ in rounds):.2f} | "
            f"{statistics.median(size for _, size in rounds):.2f} |"
            for name, rounds in (("aligned", aligned), ("random", mixed))]
    return [f"{CALLS} calls over WebSockets to one worker, {ROUNDS} rounds of {FRAMES} frames, dim 256 x 6 layers:", "",
            "| phases | device ms a frame of a call (median) | calls a step (median) |", "|---|---|---|", *rows, "",
            f"Random over aligned, median of the pairs: **{ratio:.2f}** (at most 1.3 is wanted)."]


def run() -> list[str]:
    """The lines for RESULTS.md."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_random_model(Path(folder) / "model", lm=MODEL_LM, mimi=MODEL_MIMI)
        model = load_model(str(Path(folder) / "model"), device=torch.device("cpu"), dtype=torch.float32)
        engine = CountingEngine(MoshiEngine(model, slots=CALLS))

        async def measure(url: str) -> list[str]:
            async with open_redis(url) as redis:
                return await _measure(redis, engine)

        with embedded_redis(Path(folder)) as url:
            return asyncio.run(measure(url))
