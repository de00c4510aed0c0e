"""A stack of transformer layers: weights under their official names, a parallel forward, a streaming step.

One code for three stacks: the temporal and the depth transformer (RMS norms, SiLU gating) and Mimi's two (layer
norms, GELU, layer scales).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.config import TransformerConfig
from agent.moshi.kv import PLAIN, KVRing, KVSettings
from agent.moshi.layers import (
    LayerScale,
    RMSNorm,
    Rows,
    Weight,
    Weights,
    linear,
    rotate,
    rotations,
    windowed_attention,
)
from agent.moshi.quantised import Matrix


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self._gathered: dict[int, list[LayerWeights]] = {}
        self._stack = tuple(_Layer(config) for _ in range(config.layers))
        self.layers = nn.ModuleList(self._stack)

    def weights(self, weight_set: int = 0) -> list[LayerWeights]:
        """The tensors that a step reads, gathered once, so that the hot path looks up no module; anew while training,
        where each pass needs a graph of its own."""
        if torch.is_grad_enabled():
            return [layer.weights(weight_set) for layer in self._stack]
        gathered = self._gathered.get(weight_set)
        if gathered is None or gathered[0].attend_in is not self._stack[0].self_attn.in_projs.matrices()[weight_set]:
            gathered = self._gathered[weight_set] = [layer.weights(weight_set) for layer in self._stack]
        return gathered

    def _apply(self, *args: Any, **kwargs: Any) -> Transformer:
        self._gathered.clear()  # to another device or type
        return super()._apply(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence at once, from position 0: x [B, T, dim] -> [B, T, dim]."""
        return self._whole(x, lambda _layer, _k, _v: None)

    def prefill(self, x: Tensor, ring: KVRing, slot: int) -> None:
        """As if the slot had gone step by step through x [T, dim], from position 0: its keys and values are in `ring`.
        For stacks of one position a step."""
        self._whole(x[None], lambda layer, k, v: ring.fill(layer, slot, k[0], v[0]))

    def keys_values(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [T, heads, head_dim] of x [T, dim], as `prefill` writes them."""
        kept: list[tuple[Tensor, Tensor]] = []
        self._whole(x[None], lambda _layer, k, v: kept.append((k[0], v[0])))
        return kept

    def _whole(self, x: Tensor, take: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """`take` is given each layer's keys and values [B, T, heads, head_dim]."""
        config = self.config
        rotation = None
        if config.max_period is not None:
            positions = torch.arange(x.shape[1], device=x.device)
            rotation = rotations(positions, config.dim // config.heads, config.max_period)[:, None]
        for i, layer in enumerate(self.weights()):
            q, k, v = split_heads(linear(norm(x, layer.norm1, config), layer.attend_in), config.heads)
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            take(i, k, v)
            out = windowed_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), config.context)
            x = x + scaled(linear(out.transpose(1, 2).flatten(2), layer.attend_out), layer.scale1)
            x = x + scaled(feed_forward(norm(x, layer.norm2, config), layer), layer.scale2)
        return x

    def step(self, x: Tensor, ring: KVRing, rows: Rows) -> Tensor:
        """The next positions of B slots: x [B, T, dim] -> [B, T, dim]; writes their keys and values into `ring`."""
        config, heads = self.config, self.config.heads
        assert config.max_period is not None
        step = ring.begin(rows)
        rotation = rotations(step.positions, config.dim // heads, config.max_period)[:, :, None]
        for i, layer in enumerate(self.weights()):
            projected = linear(norm(x, layer.norm1, config), layer.attend_in).unflatten(-1, (3 * heads, -1))
            turned = rotate(projected[:, :, :2 * heads], rotation)  # queries and keys
            out = ring.attend(i, turned[:, :, :heads], turned[:, :, heads:], projected[:, :, 2 * heads:], step)
            x = x + scaled(linear(out, layer.attend_out), layer.scale1)
            x = x + scaled(feed_forward(norm(x, layer.norm2, config), layer), layer.scale2)
        return x

    def ring(self, slots: int, positions_per_step: int, device: torch.device, dtype: torch.dtype,
             kv: KVSettings = PLAIN) -> KVRing:
        return KVRing(self.config, slots, positions_per_step, device, dtype, kv)


class LayerWeights(NamedTuple):
    norm1: tuple[Tensor, Tensor | None]
    attend_in: Matrix  # [3 * dim, dim]: queries, keys, values
    attend_out: Matrix
    norm2: tuple[Tensor, Tensor | None]
    feed_in: Matrix  # [2 * hidden, dim] where gated, else [hidden, dim]
    feed_out: Matrix
    scale1: Tensor | None
    scale2: Tensor | None


def norm(x: Tensor, weight: tuple[Tensor, Tensor | None], config: TransformerConfig) -> Tensor:
    """RMS norm in float32 where gated, layer norm elsewhere; over the last dimension."""
    scale, bias = weight
    if config.gated:
        return F.rms_norm(x.float(), (config.dim,), scale, config.norm_eps).to(x.dtype)
    return F.layer_norm(x, (config.dim,), scale, bias, config.norm_eps)


def feed_forward(x: Tensor, layer: LayerWeights) -> Tensor:
    hidden = linear(x, layer.feed_in)
    width = layer.feed_out.shape[1]
    if hidden.shape[-1] == width:
        return linear(F.gelu(hidden), layer.feed_out)
    return linear(F.silu(hidden[..., :width]) * hidden[..., width:], layer.feed_out)


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def split_heads(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., 3 * dim] -> queries, keys, values, each [..., heads, head_dim]."""
    q, k, v = projected.unflatten(-1, (3, heads, -1)).unbind(-3)
    return q, k, v


class _Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self._feeds: tuple[tuple[Weight, Weight], ...]
        if config.gated:
            gates = tuple(_Gating(config) for _ in range(config.weight_sets or 1))
            self.gating: nn.Module = nn.ModuleList(gates) if config.weight_sets else gates[0]
            self._feeds = tuple((gate.linear_in, gate.linear_out) for gate in gates)
        else:
            self.linear1 = Weight(config.hidden, config.dim)
            self.linear2 = Weight(config.dim, config.hidden)
            self._feeds = ((self.linear1, self.linear2),)
        self.norm1, self.norm2 = (
            RMSNorm(config.dim) if config.gated else Weight(config.dim, bias=config.dim) for _ in range(2))
        if config.layer_scale:
            self.layer_scale_1, self.layer_scale_2 = LayerScale(config.dim), LayerScale(config.dim)
        self._scaled = config.layer_scale

    def weights(self, weight_set: int) -> LayerWeights:
        feed_in, feed_out = self._feeds[weight_set]
        norm1, norm2 = ((n.weight, n.bias) if isinstance(n, Weight) else n.weight() for n in (self.norm1, self.norm2))
        return LayerWeights(
            norm1=norm1, attend_in=self.self_attn.in_projs.matrices()[weight_set],
            attend_out=self.self_attn.out_projs.matrices()[weight_set], norm2=norm2,
            feed_in=feed_in.matrix(), feed_out=feed_out.matrix(),
            scale1=self.layer_scale_1.scale if self._scaled else None,
            scale2=self.layer_scale_2.scale if self._scaled else None)


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        sets, dim = config.weight_sets or 1, config.dim
        self.in_projs, self.out_projs = Weights(sets, 3 * dim, dim), Weights(sets, dim, dim)


class _Gating(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear_in = Weight(2 * config.hidden, config.dim)
        self.linear_out = Weight(config.dim, config.hidden)
