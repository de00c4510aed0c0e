"""Rotary positions, the key and value ring, products with big matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.moshi.config import TransformerConfig
from agent.moshi.kv import KVRing, KVSettings, RingStep
from agent.moshi.layers import Rows, keep_unless_fresh, linear, rotate, rotations, windowed_attention

CPU = torch.device("cpu")


def stack(context: int) -> TransformerConfig:
    """One layer with two heads of four."""
    return TransformerConfig(dim=8, layers=1, heads=2, hidden=8, context=context, max_period=1e4, gated=True,
                             norm_eps=1e-8)


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


@pytest.fixture
def gathered(monkeypatch):
    """Rings as other devices have them."""
    monkeypatch.setattr(KVRing, "in_place_on", ())


def stepped(ring: KVRing, slots: list[int], step: int, reach: int | None = None) -> RingStep:
    rows = Rows.of(slots, [step] * len(slots), CPU)
    ring.ready(rows.host)
    return ring.begin(replace(rows, reach=reach))


@pytest.mark.parametrize(("context", "steps", "in_place"), [
    (5, 1, True), (5, 2, True), (6, 2, True), (5, 1, False), (5, 2, False), (7, 3, True), (7, 3, False)])
def test_a_ring_forgets_exactly_what_is_older_than_the_context(monkeypatch, context, steps, in_place):
    monkeypatch.setattr(KVRing, "in_place_on", ("cpu",) if in_place else ())
    torch.manual_seed(1)
    ring = KVRing(stack(context), 3, steps, CPU, torch.float32)
    assert ring.read_in_place == in_place
    ring.pages[0].fill_(math.nan)  # what an earlier call may have left
    total = 12 * steps
    q, k, v = torch.randn(3, 2, total, 2, 4)  # [which, slots, positions, heads, head_dim]
    whole = windowed_attention(*(x.transpose(1, 2) for x in (q, k, v)), context).transpose(1, 2).flatten(2)
    outs = []
    for step in range(12):
        now = slice(step * steps, (step + 1) * steps)
        outs.append(ring.attend(0, q[:, now], k[:, now], v[:, now], stepped(ring, [2, 0], step)))
    assert torch.allclose(torch.cat(outs, dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("sinks", [1, 3])
@pytest.mark.parametrize("page", [0, 4])
def test_sinks_are_never_forgotten_and_stay_at_the_windows_far_end(monkeypatch, sinks, in_place, page) -> None:
    monkeypatch.setattr(KVRing, "in_place_on", ("cpu",) if in_place else ())
    context, total, heads, size = 7, 40, 2, 4
    torch.manual_seed(3)
    ring = KVRing(stack(context), 2, 1, CPU, torch.float32, KVSettings(sinks=sinks, page=page))
    ring.pages[0].fill_(math.nan)
    q, k, v = torch.randn(3, total, heads, size)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, rotations(torch.tensor(position), size, 1e4)[None])

    for t in range(total):
        given = [x[None, None] for x in (turned(q[t], t), turned(k[t], t), v[t])]
        out = ring.attend(0, *given, stepped(ring, [1], t))
        seen = sorted({*range(min(sinks, t + 1)), *range(max(0, t - (context - sinks) + 1), t + 1)})
        at = [position + max(0, t - context + 1) if position < sinks else position for position in seen]
        keys = torch.stack([turned(k[position], place) for position, place in zip(seen, at, strict=True)], dim=1)
        values = v[seen].transpose(0, 1)
        scores = (turned(q[t], t)[:, None] @ keys.transpose(1, 2)) / size**0.5  # [heads, 1, seen]
        expected = (scores.softmax(-1) @ values)[:, 0].flatten()
        assert torch.allclose(out[0, 0], expected, atol=1e-5), t


@pytest.mark.parametrize("kv", [
    KVSettings(), KVSettings("int8"), KVSettings(sinks=2), KVSettings("fp8", 2), KVSettings(page=3),
    KVSettings("int8", page=4), KVSettings("fp8", 2, page=3)])
@pytest.mark.parametrize("count", [3, 7, 20])
def test_what_is_filled_in_at_once_is_what_steps_write(kv: KVSettings, count: int) -> None:
    torch.manual_seed(4)
    q, k, v = torch.randn(3, count + 3, 2, 4)
    rings = [KVRing(stack(7), 2, 1, CPU, torch.float32, kv) for _ in range(2)]
    for t in range(count):
        rings[0].attend(0, *(x[t][None, None] for x in (q, k, v)), stepped(rings[0], [1], t))
    rings[1].fill(0, 1, k[:count], v[:count])
    for t in range(count, count + 3):
        one, other = (ring.attend(0, *(x[t][None, None] for x in (q, k, v)), stepped(ring, [1], t))
                      for ring in rings)
        assert torch.equal(one, other)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("fp8", 0.06)])
def test_keys_and_values_in_8_bits_are_nearly_what_they_were(monkeypatch, kind, bound, in_place) -> None:
    monkeypatch.setattr(KVRing, "in_place_on", ("cpu",) if in_place else ())
    torch.manual_seed(5)
    whole = KVRing(stack(9), 2, 1, CPU, torch.float32)
    small = KVRing(stack(9), 2, 1, CPU, torch.float32, KVSettings(kind))
    differences = []
    for t in range(20):
        q, k, v = torch.randn(3, 2, 1, 2, 4)
        one, other = (ring.attend(0, q, k, v, stepped(ring, [1, 0], t)) for ring in (whole, small))
        differences.append((one - other).square().mean())
    error = torch.stack(differences).mean().sqrt().item()
    assert 0 < error < bound
    assert small.pages[0].element_size() == 1


@pytest.mark.parametrize("kv", [KVSettings(page=4), KVSettings("int8", page=4), KVSettings(sinks=3, page=4)])
def test_pages_are_taken_with_age_and_a_step_reaches_as_far_as_it_must(gathered: None, kv: KVSettings) -> None:
    torch.manual_seed(6)
    config = stack(14)
    paged, whole = (KVRing(config, 3, 1, CPU, torch.float32, each) for each in (kv, replace(kv, page=0)))
    assert paged.reaches() == (4, 8, 14)
    free = paged.pages_of.free
    assert free == 9  # three more for each slot
    (paged.scales or paged.pages)[0].fill_(math.nan)
    for t in range(40):
        q, k, v = torch.randn(3, 1, 1, 2, 4)
        reach = next((reach for reach in paged.reaches() if reach > t), 14)
        one, other = (ring.attend(0, q, k, v, stepped(ring, [1], t, reach)) for ring in (paged, whole))
        assert torch.allclose(one, other, atol=1e-6), t
        assert len(paged.pages_of.held(1)) == min(4, t // 4 + 1)
    assert paged.pages_of.free == free - 3
    paged.release(1)
    assert paged.pages_of.free == free


@pytest.mark.parametrize("sinks", [0, 2])
def test_a_call_that_finds_no_page_forgets_sooner_and_disturbs_nobody(gathered: None, sinks: int) -> None:
    torch.manual_seed(7)
    short = KVRing(stack(14), 2, 1, CPU, torch.float32, KVSettings(sinks=sinks, page=4, pool=2))
    long = KVRing(stack(14), 2, 1, CPU, torch.float32, KVSettings(sinks=sinks, page=4))
    eight = KVRing(stack(8), 2, 1, CPU, torch.float32, KVSettings(sinks=sinks, page=4))
    for t in range(8):  # takes a page of the two
        q, k, v = torch.randn(3, 1, 1, 2, 4)
        short.attend(0, q, k, v, stepped(short, [0], t))
    for t in range(30):  # takes the other, and finds no third
        q, k, v = torch.randn(3, 1, 1, 2, 4)
        one, whole, other = (ring.attend(0, q, k, v, stepped(ring, [1], t)) for ring in (short, long, eight))
        assert torch.allclose(one, whole if t < 8 else other, atol=1e-6), t
    assert short.pages_of.free == 0
    assert len(short.pages_of.held(0)) == len(short.pages_of.held(1)) == 2
    short.release(0)
    for t in range(14):  # anew: whole again
        q, k, v = torch.randn(3, 1, 1, 2, 4)
        short.attend(0, q, k, v, stepped(short, [1], t))
    assert short.pages_of.host_lengths[1] == (14 if t < 12 else 12)


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
