"""What a training step of a language model like nano's costs in bfloat16 and in float32 on this machine's CPU.

The forward and backward pass of the temporal and depth transformer under the one autocast and the other, and Muon's
orthogonal matrices, in turn, on one thread, as a training's process has it; which of both trainings take here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from agent.moshi.config import LMConfig
from agent.moshi.lm import LanguageModel
from agent.train.initial import initialise
from agent.train.muon import orthogonal
from agent.train.nano import LM
from agent.train.precision import has_bfloat16

ROUNDS, FRAMES, SPOKEN = 3, 512, 100
_TYPES = {"bfloat16": True, "float32": False}


def run() -> list[str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured()
    finally:
        torch.set_num_threads(threads)


def _measured() -> list[str]:
    lm = LanguageModel(LMConfig.from_dict(dict(LM)))
    initialise(lm, torch.Generator().manual_seed(0))
    lm.requires_grad_(True)
    tokens = torch.randint(0, 500, (1, 1 + LM["n_q"], FRAMES))
    matrix = torch.randn(LM["dim"], 4 * LM["dim"])
    works: dict[str, Callable[[bool], object]] = {
        f"forward and backward, {FRAMES} frames, {SPOKEN} of them spoken": lambda half: _step(lm, tokens, half),
        f"one orthogonal matrix of {matrix.shape[0]} x {matrix.shape[1]}": lambda half: orthogonal(matrix, half=half)}
    rows = []
    for name, work in works.items():
        took: dict[str, list[float]] = {of: [] for of in _TYPES}
        for _ in range(ROUNDS):
            for of, half in _TYPES.items():
                began = time.perf_counter()
                work(half)
                took[of].append(time.perf_counter() - began)
        half_s, whole_s = (float(np.median(took[of])) for of in _TYPES)
        rows.append(f"| {name} | {1000 * half_s:.1f} ms | {1000 * whole_s:.1f} ms | {half_s / whole_s:.2f} |")
    chosen = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    return [f"Trainings take {chosen} here.", "", "| one thread | bfloat16 | float32 | ratio |", "|---|---|---|---|",
            *rows]


def _step(lm: LanguageModel, tokens: torch.Tensor, half: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        x = lm.temporal(tokens)
        logits = lm.depth(x[:, :SPOKEN], tokens[:, :, :SPOKEN])[0].float()
        codes = tokens[0, 1:1 + lm.config.generated_codebooks, :SPOKEN]
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    lm.zero_grad()
