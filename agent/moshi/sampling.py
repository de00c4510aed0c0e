"""Draws without a generator: a draw is a function of (seed, step, codebook), the same on every device.

Every candidate's noise comes from a counter-based hash (SplitMix64's finaliser, Steele et al. 2014), and the greatest
perturbed logit wins (the Gumbel-max trick). So nothing has to be kept between steps, and neither the number of
candidates nor other rows change what a row draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as int64
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    """A bijection of int64 in which every bit depends on every other; products wrap."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1  # the mask makes the shift a logical one
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def draw_keys(seed: Tensor, step: Tensor, codebooks: int) -> Tensor:
    """seed [B], step [B] (both int64) -> a key per codebook [B, codebooks]."""
    row = _mix(_mix(seed + _GOLDEN) + step * _GOLDEN)
    return _mix(row[:, None] + (torch.arange(codebooks, device=seed.device) + 1) * _GOLDEN)


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, key: Tensor, tiers: Sequence[int]) -> Tensor:
    """One token a row, [B] int64, from logits [B, card] in float32.

    Temperature 0 takes the greatest logit; top_k 0 draws from all. `tiers` are the `tier_of` the rows that draw, as
    the host knows them: a row is drawn within its own tier, so that what others ask for changes the cost alone.
    """
    chosen = logits.argmax(dim=-1)
    card = logits.shape[1]
    below = 0
    for tier in sorted(tiers):
        drawn = _draw_among(logits, temperature, top_k, key, min(tier, card))
        here = (temperature > 0) & (top_k > below) & (top_k <= tier)
        if tier == ALL:
            here = here | ((temperature > 0) & (top_k <= 0))
        chosen = torch.where(here, drawn, chosen)
        below = tier
    return chosen


ALL = 1 << 62
_TIERS = (32, 256)
EVERY_TIER = (*_TIERS, ALL)


def tier_of(top_k: int) -> int:
    """How many candidates are looked at for this top_k; the greatest `top_k` of them are drawn from."""
    return next((tier for tier in _TIERS if 0 < top_k <= tier), ALL)


def _draw_among(logits: Tensor, temperature: Tensor, top_k: Tensor, key: Tensor, count: int) -> Tensor:
    values, tokens = logits.topk(count, dim=-1)  # [B, count], from the greatest logit down
    rank = torch.arange(count, device=logits.device)
    barred = rank >= torch.where(top_k > 0, top_k, count)[:, None]
    # 53 bits of noise in (0, 1), then Gumbel's
    noise = ((_mix(key[:, None] + tokens * _GOLDEN) >> 11) & ((1 << 53) - 1)).to(torch.float64)
    gumbel = -torch.log(-torch.log((noise + 0.5) * 2.0**-53))
    heat = torch.where(temperature > 0, temperature, 1).to(torch.float64)
    score = values.to(torch.float64) / heat[:, None] + gumbel
    best = score.masked_fill_(barred, -torch.inf).argmax(dim=-1, keepdim=True)
    return tokens.gather(1, best)[:, 0]
