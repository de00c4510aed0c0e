"""The step on a GPU: `python -m bench.gpu`, on any machine with one; no file and no network is needed.

Random weights of Moshi's shape are made on the device. For each number of calls, each fill of the context, bf16 and 8
bits, with and without speech-to-text (1B) beside it: a step as a worker takes it, from the host's arrays to the host's.

    floor      what a step must read (weights once, each call's filled keys and values) at the memory's bandwidth, which
               is measured here by copying, unless --gb-per-s names it
    kernels    that one step is; captured in a graph they are one launch
    a call     memory of all that is kept of a call that is as old as its context

The reference package beside it where it is installed (bench/requirements.txt). `--device cpu --model tiny` shows that
the harness runs; its numbers say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agent.engine import MoshiEngine, StepInputs, StepOutputs
from agent.models import PAGE_FRAMES, capture_on
from agent.moshi.checkpoint import Model
from agent.moshi.kv import KVSettings
from agent.moshi.quantised import EightBits
from agent.moshi.sizes import Sizes, sizes_of
from agent.moshi.stages import bucket_of
from bench.gpu_models import SHAPES, Shape, Way, make, ways
from bench.gpu_reference import reference_rows

FILLS = {"empty": 0.0, "half": 0.5, "full": 1.0}
SETTLE = 5  # steps before those that are timed


@dataclass(frozen=True)
class Asked:
    device: torch.device
    shape: Shape
    calls: tuple[int, ...]
    steps: int
    bytes_per_s: float


def rows(asked: Asked) -> Iterator[str]:
    """The table's lines, as they come."""
    yield "| held as | calls | STT | context | p50 ms | p99 ms | floor ms | p50 / floor | kernels | a call, MB |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for way in ways(asked.device):
        agent, stt = make(asked.shape, way, asked.device)
        for calls in asked.calls:
            for beside in (None, stt):
                yield from _of(asked, way, agent, beside, calls)
        del agent, stt


def _of(asked: Asked, way: Way, agent: Model, stt: Model | None, calls: int) -> Iterator[str]:
    """One engine's rows; a row that says so where it doesn't fit."""
    give_back(asked.device)
    told = f"| {way.name} | {calls} | {'yes' if stt else 'no'} |"
    page = PAGE_FRAMES if asked.device.type == "cuda" else 0
    try:
        engine = MoshiEngine(agent, calls, stt, kv=KVSettings(way.kv, page=page), capture=capture_on(asked.device))
        if engine.graphs is not None:
            engine.graphs.prepare([bucket_of(calls)])
    except torch.OutOfMemoryError:
        yield f"{told} - | doesn't fit |  |  |  |  |  |"
        return
    sizes = [_sizes(agent, way, way.kv), *([_sizes(stt, way, None)] if stt else [])]
    for name, filled in FILLS.items():
        position = age(engine, filled)
        times = step_times(engine, calls, asked.steps)
        p50, p99 = statistics.median(times), float(np.quantile(times, 0.99))
        floor = sum(1000 * size.floor_s(asked.bytes_per_s, calls, min(1.0, position / size.context)) for size in sizes)
        kept = sum(size.call_bytes for size in sizes) / 1e6
        yield (f"{told} {name} | {1000 * p50:.2f} | {1000 * p99:.2f} | {floor:.2f} | {1000 * p50 / floor:.1f} | "
               f"{kernels(engine, calls)} | {kept:.0f} |")
    del engine


def _sizes(model: Model, way: Way, kv: EightBits | None) -> Sizes:
    return sizes_of(model.name, model.config, model.mimi_config, dtype=way.dtype, weights=way.weights,
                    kv=KVSettings(kv))


def age(engine: MoshiEngine, filled: float, slots: Iterable[int] | None = None) -> int:
    """Have slots, or all, be in the middle of calls whose context is so full; returns their position. What they
    remember is whatever lies there: it costs the same."""
    position = int(filled * engine.info.context)
    stages, transcriber = engine.stages, engine.transcriber
    rings = [(stages.generate_clock, stages.generator.ring), (stages.encode_clock, stages.encoder.ring),
             (stages.decode_clock, stages.decoder.ring)]
    tokens = [stages.generator.tokens]
    if transcriber is not None:
        rings.append((transcriber.clock, transcriber.state.ring))
        tokens.append(transcriber.state.tokens)
    with torch.inference_mode():
        for slot in range(engine.slots) if slots is None else slots:
            for clock, ring in rings:
                clock.positions[slot] = position
                ring.take(slot, position, ring.length)
            for taken in tokens if position else ():
                taken[slot].zero_()
    return position


class AgedEngine(MoshiEngine):
    """Its calls are as old as the context when they begin."""

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        age(self, 1.0, inputs.slots[inputs.fresh].tolist())
        return super().step(replace(inputs, fresh=np.zeros_like(inputs.fresh)), transcribe=transcribe)


def step_times(engine: MoshiEngine, calls: int, steps: int) -> list[float]:
    """Seconds of each of so many steps of all calls."""
    draw, info = np.random.default_rng(0), engine.info
    sampling, taken = engine.default_sampling(calls), []
    for step in range(SETTLE + steps):
        pcm = 0.05 * draw.standard_normal((calls, info.frame_samples)).astype(np.float32)
        inputs = StepInputs.free(range(calls), [False] * calls, pcm, info, sampling)
        began = time.perf_counter()
        engine.step(inputs)
        if step >= SETTLE:
            taken.append(time.perf_counter() - began)
    return taken


def kernels(engine: MoshiEngine, calls: int) -> int:
    """On a GPU the kernels of a step as the profiler counts them, elsewhere the operations that a step is."""
    if engine.device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:  # type: ignore[no-untyped-call]
            step_times(engine, calls, 1)
        events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return round(len(events) / (SETTLE + 1))
    with _Counting() as counting:
        step_times(engine, calls, 1)
    return round(counting.count / (SETTLE + 1))


class _Counting(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def give_back(device: torch.device) -> None:
    """The memory of engines that are gone: they hold each other in circles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def bandwidth(device: torch.device) -> float:
    """Bytes a second that the device's memory reads and writes, measured by a copy."""
    count = 1 << (30 if device.type == "cuda" else 26)
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> float:
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return 2 * count / min(_times(copy, 10))


def _times(call: Callable[[], float], count: int) -> list[float]:
    return [call() for _ in range(count)]


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="moshiko", choices=SHAPES)
    return parser


def device_named(name: str) -> torch.device:
    """Ends the program in one line where there is no such device."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu --model tiny shows that the harness runs")
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--calls", default="1,8,32,64", help="numbers of calls, with commas")
    parser.add_argument("--steps", type=int, default=200, help="that are timed, of each row")
    parser.add_argument("--gb-per-s", type=float, help="the memory's bandwidth as its maker says; none: measured")
    given = parser.parse_args()
    device = device_named(given.device)
    calls = tuple(int(count) for count in given.calls.split(","))
    bytes_per_s = given.gb_per_s * 1e9 if given.gb_per_s else bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, which says nothing of a GPU"
    print(f"{name}; torch {torch.__version__}; {given.model}'s shape, random weights; {bytes_per_s / 1e9:.0f} GB/s\n")
    asked = Asked(device, SHAPES[given.model], calls, given.steps, bytes_per_s)
    for line in rows(asked):
        print(line, flush=True)
    print("\nThe reference package, bf16, with its own CUDA graphs:\n")
    for line in reference_rows(asked.shape.lm, device, calls, given.steps):
        print(line, flush=True)


if __name__ == "__main__":
    main()
