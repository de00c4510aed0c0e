"""The small parts that Mimi and the language model share: linear maps, rotary positions, rows of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.quantised import Matrix, Quantised

# On a CPU oneDNN multiplies a few float32 rows by a big matrix up to twice as fast as the library behind F.linear,
# which reads the matrix once per row; its call costs 12 us more, so small products stay with F.linear.
_ONEDNN_FROM_PRODUCTS = 1 << 18
_onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in]. Every row comes out the same bit for bit, whatever the other rows hold."""
    if isinstance(weight, Quantised):
        out = weight.times(x)
        return out if bias is None else out + bias
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
        self.scale: Tensor | None
        self.register_buffer("scale", None)  # of each row, where the weight is in 8 bits
        self._quantised: Quantised | None = None

    def matrix(self) -> Matrix:
        """The weight as `linear` takes it; the same object until it is replaced."""
        if self.scale is None:
            return self.weight
        if self._quantised is None or self._quantised.values is not self.weight:
            self._quantised = Quantised(self.weight, self.scale)
        return self._quantised


class Weights(nn.ModuleList):
    """Several bare weights of one shape, as `0.weight`, `1.weight` and so on."""

    def __init__(self, count: int, *shape: int) -> None:
        super().__init__(Weight(*shape) for _ in range(count))

    def all(self) -> list[Tensor]:
        return [module.weight for module in self if isinstance(module, Weight)]

    def matrices(self) -> list[Matrix]:
        return [module.matrix() for module in self if isinstance(module, Weight)]


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
    host: tuple[tuple[int, int], ...] | None  # (slot, position) of each row; None: the host knows nothing of them
    reach: int | None = None  # above every row's position, where less than all is to be looked at

    @property
    def size(self) -> int:
        return self.slots.shape[0]

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
