"""The small parts that Mimi and the language model share: linear maps, rotary positions, rows of a step, KV rings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU oneDNN multiplies a few float32 rows by a big matrix up to twice as fast as the library behind F.linear,
# which reads the matrix once per row; its call costs 12 us more, so small products stay with F.linear.
_ONEDNN_FROM_PRODUCTS = 1 << 18
_onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

CACHE_LINE_FLOATS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in]. Every row comes out the same bit for bit, whatever the other rows hold."""
    if (_onednn_linear is not None and x.numel() * weight.shape[0] >= _ONEDNN_FROM_PRODUCTS and weight.is_cpu
            and weight.dtype == x.dtype == torch.float32 and not torch.is_grad_enabled()):
        return _onednn_linear(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


class Weight(nn.Module):
    """A bare weight (and bias) under its official name; whoever uses it knows how."""

    def __init__(self, *shape: int, bias: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(torch.empty(bias), requires_grad=False)


class Weights(nn.ModuleList):
    """Several bare weights of one shape, as `0.weight`, `1.weight` and so on."""

    def __init__(self, count: int, *shape: int) -> None:
        super().__init__(Weight(*shape) for _ in range(count))

    def all(self) -> list[Tensor]:
        return [module.weight for module in self if isinstance(module, Weight)]


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim), requires_grad=False)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, 1, dim), requires_grad=False)

    def weight(self) -> tuple[Tensor, Tensor | None]:
        """Scale and no bias. The norm's sums are float32, and so is its scale."""
        return self.alpha.flatten().float(), None


@dataclass(frozen=True)
class Rows:
    """Which slots a step works on. Several rows may share the scratch slot, whose state nobody reads."""

    slots: Tensor  # [B] int64, on the device
    positions: Tensor  # [B] int64, on the device: how many steps the slot took before this one
    host: tuple[tuple[int, int], ...]  # (slot, position) of each row, as the host knows them

    @property
    def size(self) -> int:
        return len(self.host)

    @classmethod
    def of(cls, slots: Sequence[int], positions: Sequence[int], device: torch.device) -> Rows:
        both = to_device(torch.tensor([list(slots), list(positions)], dtype=torch.int64), device)
        return cls(both[0], both[1], tuple(zip(slots, positions, strict=True)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_unless_fresh(state: Tensor, rows: Rows) -> Tensor:
    """The rows' part of a state [slots + 1, ...], zero where the slot starts anew. Returns [B, ...]."""
    kept = state.index_select(0, rows.slots)
    fresh = (rows.positions == 0).view(-1, *[1] * (state.dim() - 1))
    return kept.masked_fill_(fresh, 0)  # a fill, no product: what an earlier call left may be NaN


def rotations(positions: Tensor, head_dim: int, max_period: float) -> Tensor:
    """Rotary embedding as complex numbers [..., head_dim / 2], for pairs of neighbours (Su et al. 2021).

    The angles are computed in float64: in float32 they are off by 0.01 rad after 200,000 steps.
    """
    pairs = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float64)
    frequencies = torch.exp(pairs * (-2 * math.log(max_period) / head_dim))
    angles = positions.to(torch.float64)[..., None] * frequencies
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x [..., heads, head_dim] turned by rotation [..., 1, head_dim / 2], in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class KVRing:
    """Keys and values of one transformer for all slots, oldest overwritten first.

    A slot's ring lies in a page per layer, found through `table`; one page a slot for now, as many pages as slots.
    The ring holds `context + positions_per_step - 1` positions, so that every query of a step that brings several
    still sees its whole context. The last slot is scratch.
    """

    def __init__(self, slots: int, layers: int, heads: int, head_dim: int, context: int, positions_per_step: int,
                 device: torch.device, dtype: torch.dtype) -> None:
        self.context = context
        self.positions_per_step = positions_per_step
        self.length = context + positions_per_step - 1
        # whole cache lines a head: where a page lies in memory must not change how it is summed
        allocated = math.ceil(self.length / CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS
        self.table = torch.arange(slots + 1, device=device)  # slot -> page
        self._host_table = list(range(slots + 1))
        shape = (slots + 1, 2, heads, allocated, head_dim)  # of pages: keys and values
        self.pages = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.read_in_place = device.type == "cpu"
        self._masks = self._mask_table() if self.read_in_place and positions_per_step > 1 else None

    def rows(self) -> dict[str, Tensor]:
        return {f"layer{i}": pages for i, pages in enumerate(self.pages)}

    def _mask_table(self) -> Tensor:
        """What a step's queries see of the ring when its last key lies at index i: [length, T, length]."""
        steps, length = self.positions_per_step, self.length
        last, index = torch.arange(length)[:, None, None], torch.arange(length)[None, None, :]
        age = (last - index) % length - (steps - 1 - torch.arange(steps))[None, :, None]  # of the key, to the query
        return torch.zeros(length, steps, length).masked_fill((age < 0) | (age >= self.context), -math.inf)

    def begin(self, rows: Rows) -> RingStep:
        """Where this step's keys go and what its queries see, for all layers."""
        steps = self.positions_per_step
        first = rows.positions * steps
        positions = first[:, None] + torch.arange(steps, device=first.device)  # [B, T]
        pages = self.table[rows.slots][:, None]
        views: list[tuple[int, int, Tensor | None]] = []
        visible = mask = None
        if self.read_in_place:
            for slot, position in rows.host:
                last = (position + 1) * steps - 1
                filled = min(last + 1, self.length)
                seen = None if self._masks is None else self._masks[last % self.length, :, :filled]
                views.append((self._host_table[slot], filled, seen))
        else:
            index = torch.arange(self.length, device=first.device)
            last_position = positions[:, -1:]
            held = last_position - (last_position - index) % self.length  # [B, length]: the key's position
            age = positions[:, :, None] - held[:, None, :]  # [B, T, length]
            mask = ((held[:, None, :] >= 0) & (age >= 0) & (age < self.context))[:, None]  # [B, 1, T, length]
            visible = (held >= 0)[:, None, None, :, None]  # [B, 1, 1, length, 1]
        return RingStep(positions, pages, positions % self.length, views, visible, mask)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: RingStep) -> Tensor:
        """Write k, v and let q attend; all [B, T, heads, head_dim]. Returns [B, T, heads * head_dim]."""
        pages = self.pages[layer]
        pages[step.pages, 0, :, step.index] = k
        pages[step.pages, 1, :, step.index] = v
        q = q.transpose(1, 2)  # [B, heads, T, head_dim]
        if self.read_in_place:
            # row by row on views of the pages: a copy of what is read would cost more than reading it
            out = torch.cat([
                F.scaled_dot_product_attention(q[row:row + 1], pages[page:page + 1, 0, :, :filled],
                                               pages[page:page + 1, 1, :, :filled], attn_mask=mask)
                for row, (page, filled, mask) in enumerate(step.views)])
        else:
            held = pages[step.pages[:, 0], :, :, :self.length]
            assert step.visible is not None
            held = held.masked_fill_(~step.visible, 0)  # an earlier call may have left NaN, and 0 * NaN is NaN
            out = F.scaled_dot_product_attention(q, held[:, 0], held[:, 1], attn_mask=step.mask)
        return out.transpose(1, 2).flatten(2)


    def fill(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a sequence's keys and values [T, heads, head_dim] from position 0 on, as far as they are held."""
        count = len(k)
        first = max(0, count - self.length)
        index = torch.arange(first, count, device=k.device) % self.length
        page = self.pages[layer][self._host_table[slot]]
        page[0, :, index] = k[first:].transpose(0, 1)
        page[1, :, index] = v[first:].transpose(0, 1)


@dataclass(frozen=True)
class RingStep:
    """What `KVRing.begin` worked out for one step."""

    positions: Tensor  # [B, T]
    pages: Tensor  # [B, 1]
    index: Tensor  # [B, T]: where in the ring the step's keys go
    views: list[tuple[int, int, Tensor | None]]  # a row's page, how much of it is filled, its mask [T, filled]
    visible: Tensor | None  # [B, 1, 1, length, 1]: what was written since the slot started
    mask: Tensor | None  # [B, 1, T, length]


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, context: int | None, block: int = 256) -> Tensor:
    """Causal attention over a whole sequence, each query over its last `context` keys; [B, heads, T, head_dim].

    Works on blocks of queries, so that a long sequence needs no mask of its length squared.
    """
    # While a CPU trains, plain products take 0.4 to 0.6 of the time of the fused kernel and its gradient.
    by_products = q.is_cpu and torch.is_grad_enabled()
    length = q.shape[2]
    if not by_products and (context is None or length <= context):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    outs = []
    for begin in range(0, length, block):
        end = min(begin + block, length)
        start = 0 if context is None else max(0, begin - context + 1)
        age = (torch.arange(begin, end, device=q.device)[:, None]
               - torch.arange(start, end, device=q.device)[None, :])
        mask = age >= 0 if context is None else (age >= 0) & (age < context)
        part = q[:, :, begin:end], k[:, :, start:end], v[:, :, start:end]
        outs.append(_attended(*part, mask) if by_products else F.scaled_dot_product_attention(*part, attn_mask=mask))
    return torch.cat(outs, dim=2)


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    hidden = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + hidden
    weights: Tensor = scores.softmax(-1, dtype=q.dtype)
    return weights @ v
