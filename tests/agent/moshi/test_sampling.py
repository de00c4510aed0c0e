"""Draws are a function of (seed, step, codebook), and follow the distribution that is asked for."""

from __future__ import annotations

import pytest
import torch

from agent.moshi.sampling import ALL, draw, draw_keys, tier_of

WRAP = 1 << 64


def mixed(x: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WRAP
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WRAP
    return x ^ (x >> 31)


def test_keys_are_the_published_hash_on_every_device():
    golden = 0x9E3779B97F4A7C15
    seeds, steps = [0, 1, 2**62 + 12345, 2**63 - 1], [0, 7, 200_000, 3]
    keys = draw_keys(torch.tensor(seeds), torch.tensor(steps), 3)
    for row, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
        base = mixed((mixed((seed + golden) % WRAP) + step * golden) % WRAP)
        expected = [mixed((base + (k + 1) * golden) % WRAP) for k in range(3)]
        assert [int(key) % WRAP for key in keys[row]] == expected


def drawn(logits: list[float], draws: int, temperature: float, top_k: int, codebook: int = 0) -> torch.Tensor:
    keys = draw_keys(torch.full((draws,), 11), torch.arange(draws), codebook + 1)[:, codebook]
    tokens = draw(torch.tensor(logits).repeat(draws, 1), torch.full((draws,), temperature),
                  torch.full((draws,), top_k), keys, (tier_of(top_k),))
    return torch.bincount(tokens, minlength=len(logits)) / draws


@pytest.mark.parametrize("codebook", [0, 5])
def test_draws_follow_the_softmax_of_the_k_greatest(codebook):
    logits = [1.0, 0.0, -1.0, 2.0, 0.5]
    kept = torch.tensor([1.0, 0.0, -torch.inf, 2.0, 0.5])
    assert torch.allclose(drawn(logits, 100_000, 0.8, 4, codebook), torch.softmax(kept / 0.8, -1), atol=6e-3)
    assert torch.allclose(drawn(logits, 100_000, 2.0, 0, codebook), torch.softmax(torch.tensor(logits) / 2, -1),
                          atol=6e-3)


def test_temperature_0_and_top_k_1_take_the_greatest():
    assert drawn([0.0, 3.0, 1.0], 50, 0.0, 0)[1] == 1
    assert drawn([0.0, 3.0, 1.0], 50, 5.0, 1)[1] == 1


def test_a_row_draws_the_same_whatever_other_rows_ask_for():
    torch.manual_seed(0)
    logits = torch.randn(1, 400).bfloat16().float().repeat(3, 1)  # bfloat16: with many ties
    key = draw_keys(torch.full((3,), 5), torch.full((3,), 9), 1)[:, 0]
    for top_k in (3, 32, 100, 256, 0, 300):
        alone = draw(logits[:1], torch.tensor([1.5]), torch.tensor([top_k]), key[:1], (tier_of(top_k),))
        others = draw(logits, torch.tensor([0.0, 1.5, 0.7]), torch.tensor([5, top_k, 20]), key,
                      (32, 256, ALL))
        assert others[1] == alone[0]


def test_a_barred_token_is_never_drawn():
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, 1.0]]).repeat(500, 1)
    keys = draw_keys(torch.full((500,), 1), torch.arange(500), 1)[:, 0]
    tokens = draw(logits, torch.full((500,), 3.0), torch.zeros(500, dtype=torch.int64), keys, (ALL,))
    assert set(tokens.tolist()) == {0, 3}
