"""What a training of the codec costs: its convolutions over blocks of the signal, beside the same by windows.

nano's Mimi, in bfloat16 as trainings run it, on one thread: forward and backward of the encoder and of the decoder for
four stretches of 2 s. The two ways take turns; what is told is processor time, which other programs disturb little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from agent.moshi.config import MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling
from agent.moshi.layers import linear
from agent.moshi.mimi import Mimi
from agent.train.codec import initialise
from agent.train.nano import MIMI

STRETCHES, SECONDS, ROUNDS = 4, 2.0, 15


def by_windows(self: CausalConv, history: Tensor, x: Tensor) -> Tensor:
    """As it was before: shifted copies side by side, one product."""
    x = torch.cat([history, x], dim=1)
    steps = (x.shape[1] - self.history) // self.stride
    span = (steps - 1) * self.stride + 1
    if self.kernel > 1:
        x = torch.cat([x[:, at:at + span:self.stride] for at in range(0, self.kernel * self.dilation, self.dilation)],
                      dim=2)
    matrix = self.weight.transpose(1, 2).reshape(self.outputs, self.kernel * self.inputs)
    return linear(x, matrix, self.bias)


def by_slices(self: CausalUpsampling, x: Tensor, before: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    now, after = linear(x, matrix).chunk(2, dim=-1)
    out = (now + torch.cat([before[:, None], after[:, :-1]], dim=1)).unflatten(-1, (self.stride, self.outputs))
    return (out + self.bias).flatten(1, 2), after[:, -1]


def run() -> list[str]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    mimi = Mimi(MimiConfig.from_dict(dict(MIMI)))
    pcm = 0.1 * torch.randn(STRETCHES, round(SECONDS * mimi.config.sample_rate), generator=generator)
    initialise(mimi, pcm, generator)
    mimi.requires_grad_(True)
    positions = round(SECONDS * mimi.config.frame_rate * mimi.config.positions_per_frame)
    latents = torch.randn(STRETCHES, positions, mimi.config.dimension, generator=generator)

    def encode() -> Tensor:
        return mimi.encoder(pcm[:, :, None], pcm.new_zeros(STRETCHES, mimi.encoder.carries))[0]

    def decode() -> Tensor:
        return mimi.decoder(latents, latents.new_zeros(STRETCHES, mimi.decoder.carries))[0]

    ways = {"blocks": (CausalConv.over_blocks, CausalUpsampling._to_learn), "windows": (by_windows, by_slices)}
    lines = ["| forward and backward, ms of processor for 1 s of sound | over blocks | by windows | ratio |",
             "|---|---|---|---|"]
    try:
        for name, half in (("encoder", encode), ("decoder", decode)):
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(ROUNDS + 2):
                for way, (conv, upsampling) in ways.items():
                    CausalConv.over_blocks = conv  # type: ignore[method-assign]
                    CausalUpsampling._to_learn = upsampling  # type: ignore[method-assign]
                    seconds = _taken(half)
                    if number >= 2:
                        taken[way].append(1000 * seconds / STRETCHES / SECONDS)
            blocks, windows = (statistics.median(taken[way]) for way in ways)
            lines.append(f"| {name} | {blocks:.1f} | {windows:.1f} | {blocks / windows:.2f} |")
    finally:
        CausalConv.over_blocks, CausalUpsampling._to_learn = ways["blocks"]  # type: ignore[method-assign]
    return lines


def _taken(half: Callable[[], Tensor]) -> float:
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        out = half()
    out.float().square().mean().backward()
    return time.process_time() - began
