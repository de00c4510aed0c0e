"""The reference package's step on the same device: Mimi's encoder, the language model, Mimi's decoder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from bench.reference import MISSING

WARM_UP = 10  # it captures its graphs in these


def reference_rows(config: Mapping[str, Any], device: torch.device, calls: tuple[int, ...], steps: int
                   ) -> Iterator[str]:
    """Lines of a table; it reads its whole context however full that is, so there is one row for each number."""
    try:
        from moshi.models import LMGen, loaders
    except ImportError:
        yield MISSING
        return
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    own = {key: value for key, value in config.items() if not key.endswith("_name")}
    lm = loaders.get_moshi_lm(None, dict(own), device=str(device), dtype=dtype).eval()
    mimi = loaders.get_mimi(None, str(device), num_codebooks=config["dep_q"])
    yield "| calls | p50 ms | p99 ms |"
    yield "|---|---|---|"
    for count in calls:
        try:
            times = _times(LMGen(lm), mimi, device, count, steps)
        except torch.OutOfMemoryError:
            yield f"| {count} | doesn't fit | |"
            continue
        yield f"| {count} | {1000 * statistics.median(times):.2f} | {1000 * float(np.quantile(times, 0.99)):.2f} |"


@torch.no_grad()
def _times(generator: Any, mimi: Any, device: torch.device, calls: int, steps: int) -> list[float]:
    taken = []
    pcm = 0.05 * torch.randn(calls, 1, mimi.frame_size, device=device)
    with mimi.streaming(calls), generator.streaming(calls):
        for step in range(WARM_UP + steps):
            began = time.perf_counter()
            tokens = generator.step(mimi.encode(pcm))
            if tokens is not None:
                mimi.decode(tokens[:, 1:].clamp(min=0)).cpu()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if step >= WARM_UP:
                taken.append(time.perf_counter() - began)
    return taken
