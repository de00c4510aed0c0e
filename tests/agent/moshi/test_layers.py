"""Rotary positions, the key and value ring, products with big matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agent.moshi.layers import KVRing, Rows, keep_unless_fresh, linear, rotate, rotations, windowed_attention

CPU = torch.device("cpu")


def test_rotations_keep_their_precision_at_200_000_steps():
    positions = torch.tensor([0, 1, 3000, 200_000, 5_000_000])
    ours = rotations(positions, 128, 10_000.0).numpy()
    frequencies = np.exp(np.arange(64, dtype=np.longdouble) * (-2 * np.log(np.longdouble(10_000)) / 128))
    angles = positions.numpy().astype(np.longdouble)[:, None] * frequencies
    assert np.abs(ours.real - np.cos(angles)).max() < 1e-6
    assert np.abs(ours.imag - np.sin(angles)).max() < 1e-6


def test_only_the_distance_between_positions_counts():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 64)
    def product(at: int) -> float:
        turned = [rotate(x, rotations(torch.tensor([position]), 64, 1e4)[:, None])
                  for x, position in ((q, at + 5), (k, at))]
        return float((turned[0] * turned[1]).sum())

    assert product(200_000) == pytest.approx(product(0), abs=1e-4)


@pytest.mark.parametrize(("context", "steps", "in_place"), [
    (5, 1, True), (5, 2, True), (6, 2, True), (5, 1, False), (5, 2, False), (7, 3, True), (7, 3, False)])
def test_a_ring_forgets_exactly_what_is_older_than_the_context(context, steps, in_place):
    torch.manual_seed(1)
    ring = KVRing(3, 1, 2, 4, context, steps, CPU, torch.float32)
    if not in_place:  # the way that other devices take
        ring.read_in_place, ring._masks = False, None
    ring.pages[0].fill_(math.nan)  # what an earlier call may have left
    total = 12 * steps
    q, k, v = torch.randn(3, 2, total, 2, 4)  # [which, slots, positions, heads, head_dim]
    whole = windowed_attention(*(x.transpose(1, 2) for x in (q, k, v)), context).transpose(1, 2).flatten(2)
    outs = []
    for step in range(12):
        now = slice(step * steps, (step + 1) * steps)
        rows = Rows.of([2, 0], [step, step], CPU)
        outs.append(ring.attend(0, q[:, now], k[:, now], v[:, now], ring.begin(rows)))
    assert torch.allclose(torch.cat(outs, dim=1), whole, atol=1e-5)


def test_a_window_over_blocks_is_a_window_over_the_whole():
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 1, 2, 50, 4)
    in_blocks = windowed_attention(q, k, v, 9, block=8)
    assert torch.allclose(in_blocks, windowed_attention(q, k, v, 9), atol=1e-6)


@pytest.mark.parametrize("context", [None, 9, 100])
def test_attention_is_the_same_while_a_model_is_trained(context: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 16, generator=generator) for _ in range(3))
    with torch.no_grad():
        expected = windowed_attention(q, k, v, context)
    assert torch.allclose(windowed_attention(q, k, v, context, block=16), expected, atol=1e-5)


def test_a_fresh_slot_keeps_nothing_even_of_what_is_not_a_number():
    state = torch.full((3, 2), math.nan)
    state[1] = 7
    kept = keep_unless_fresh(state, Rows.of([0, 1], [0, 4], CPU))
    assert kept.tolist() == [[0, 0], [7, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_a_product_gives_every_row_the_same_bits(rows, dtype):
    torch.manual_seed(3)
    for outputs, inputs in ((768, 512), (48, 40)):
        weight, x = torch.randn(outputs, inputs, dtype=dtype), torch.randn(inputs, dtype=dtype)
        with torch.inference_mode():
            product = linear(x.repeat(rows, 1), weight)
            assert torch.equal(product, product[:1].expand_as(product))
            among_others = torch.randn(rows, inputs, dtype=dtype)
            among_others[-1] = x
            assert torch.equal(linear(among_others, weight)[-1], product[0])
        exact = x.double() @ weight.double().t()
        assert (product[0] - exact).abs().max() < (1e-4 if dtype == torch.float32 else 0.3)
