"""What a transformer remembers of each slot: the keys and values of its last positions, whole or in 8 bits.

    position p lies at   p                                        p < sinks (kept for good) or the ring isn't full
                         sinks + (p - sinks) % (length - sinks)   oldest overwritten first
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.moshi.config import TransformerConfig
from agent.moshi.layers import Rows, rotate, rotations
from agent.moshi.quantised import TYPES, EightBits, quantise

CACHE_LINE_FLOATS = 16


@dataclass(frozen=True)
class KVSettings:
    """`kind`: in how many bits keys and values are kept, None: the model's own type. `sinks`: first positions of a call
    that attention never loses, at the far end of the window once it is full (Xiao et al. 2023): long calls then keep
    the positions on which trained attention leans."""

    kind: EightBits | None = None
    sinks: int = 0


PLAIN = KVSettings()


class KVRing:
    """Keys and values of one transformer for all slots.

    A slot's ring lies in a page per layer, found through `table`; each slot has one page.
    The ring holds `context + positions_per_step - 1` positions, so that every query of a step that brings several
    still sees its whole context. The last slot is scratch. In 8 bits each position of each head has a scale.
    """

    def __init__(self, config: TransformerConfig, slots: int, positions_per_step: int, device: torch.device,
                 dtype: torch.dtype, kv: KVSettings = PLAIN) -> None:
        assert config.context is not None
        assert config.max_period is not None
        if kv.sinks and (positions_per_step > 1 or kv.sinks >= config.context):
            raise ValueError(f"sinks must be fewer than the context's {config.context} positions")
        self.context, self.sinks, self.dtype = config.context, kv.sinks, dtype
        self.positions_per_step = positions_per_step
        self.length = config.context + positions_per_step - 1
        self._max_period, head_dim = config.max_period, config.dim // config.heads
        # whole cache lines a head: where a page lies in memory must not change how it is summed
        self.allocated = math.ceil(self.length / CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS
        self.table = torch.arange(slots + 1, device=device)  # slot -> page
        self._host_table = list(range(slots + 1))
        self._type = TYPES[kv.kind] if kv.kind else None

        def per_layer(*shape: int, dtype: torch.dtype) -> list[Tensor]:
            return [torch.zeros(slots + 1, *shape, device=device, dtype=dtype) for _ in range(config.layers)]

        shape = (2, config.heads, self.allocated)  # of a page: keys and values
        self.pages = per_layer(*shape, head_dim, dtype=self._type or dtype)
        self.scales = per_layer(*shape, dtype=torch.float32) if kv.kind else []
        # the sinks' keys as they were, to be turned anew as the window moves on; a place more for all later keys
        self._sink_keys = per_layer(config.heads, kv.sinks + 1, head_dim, dtype=dtype) if kv.sinks else []
        self.read_in_place = device.type == "cpu"
        self._masks = self._mask_table() if self.read_in_place and positions_per_step > 1 else None

    def rows(self) -> dict[str, Tensor]:
        kinds = {"layer{}": self.pages, "layer{}.scales": self.scales, "layer{}.sinks": self._sink_keys}
        return {name.format(i): tensor for name, tensors in kinds.items() for i, tensor in enumerate(tensors)}

    def _mask_table(self) -> Tensor:
        """What a step's queries see of the ring when its last key lies at index i: [length, T, length]."""
        steps, length = self.positions_per_step, self.length
        last, index = torch.arange(length)[:, None, None], torch.arange(length)[None, None, :]
        age = (last - index) % length - (steps - 1 - torch.arange(steps))[None, :, None]  # of the key, to the query
        return torch.zeros(length, steps, length).masked_fill((age < 0) | (age >= self.context), -math.inf)

    def _places(self, positions: Tensor) -> Tensor:
        turning = self.length - self.sinks
        return torch.where(positions < self.sinks, positions, self.sinks + (positions - self.sinks) % turning)

    def begin(self, rows: Rows) -> RingStep:
        """Where this step's keys go and what its queries see, for all layers."""
        steps, sinks = self.positions_per_step, self.sinks
        first = rows.positions * steps
        positions = first[:, None] + torch.arange(steps, device=first.device)  # [B, T]
        pages = self.table[rows.slots][:, None]
        views: list[tuple[int, int, Tensor | None]] = []
        visible = mask = turn = None
        if self.read_in_place:
            for slot, position in rows.host:
                last = (position + 1) * steps - 1
                filled = min(last + 1, self.length)
                seen = None if self._masks is None else self._masks[last % self.length, :, :filled]
                views.append((self._host_table[slot], filled, seen))
        else:
            index = torch.arange(self.length, device=first.device)
            last_position = positions[:, -1:]
            held = last_position - (last_position - index) % (self.length - sinks)  # [B, length]: the key's position
            if sinks:
                held = torch.where(index < sinks, index, torch.where(held < sinks, -1, held))
                held = torch.where(held <= last_position, held, -1)
            age = positions[:, :, None] - held[:, None, :]  # [B, T, length]
            young = (age < self.context) | (index < sinks)
            mask = ((held[:, None, :] >= 0) & (age >= 0) & young)[:, None]  # [B, 1, T, length]
            visible = (held >= 0)[:, None, None, :, None]  # [B, 1, 1, length, 1]
        if sinks and any(position >= self.context for _, position in rows.host):
            # how far the window is past its first place: so far the sinks come along
            shift = (rows.positions - (self.context - 1)).clamp(min=0)
            turn = rotations(shift, self.pages[0].shape[-1], self._max_period)[:, None, None]
        return RingStep(positions, pages, self._places(positions), views, visible, mask, turn)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: RingStep) -> Tensor:
        """Write k, v and let q attend; all [B, T, heads, head_dim]. Returns [B, T, heads * head_dim]."""
        self._put(layer, 0, step.pages, step.index, k)
        self._put(layer, 1, step.pages, step.index, v)
        if self.sinks:
            self._keep_sinks(layer, k, step)
        q = q.transpose(1, 2)  # [B, heads, T, head_dim]
        if self.read_in_place:
            # row by row on views of the pages: a copy of what is read would cost more than reading it
            held = [self._page(layer, page, filled) for page, filled, _ in step.views]
            out = torch.cat([
                F.scaled_dot_product_attention(q[row:row + 1], both[None, 0], both[None, 1], attn_mask=mask)
                for row, (both, (_, _, mask)) in enumerate(zip(held, step.views, strict=True))])
        else:
            both = self._pages(layer, step.pages[:, 0])
            assert step.visible is not None
            both.masked_fill_(~step.visible, 0)  # an earlier call may have left NaN, and 0 * NaN is NaN
            out = F.scaled_dot_product_attention(q, both[:, 0], both[:, 1], attn_mask=step.mask)
        return out.transpose(1, 2).flatten(2)

    def fill(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a sequence's keys and values [T, heads, head_dim] from position 0 on, as far as they are held."""
        count = len(k)
        kept = torch.arange(max(0, count - (self.length - self.sinks)), count, device=k.device)
        kept = torch.cat([torch.arange(min(self.sinks, int(kept[0]) if count else 0), device=k.device), kept])
        page = torch.full_like(kept, self._host_table[slot])
        places = self._places(kept)
        self._put(layer, 0, page, places, k[kept])
        self._put(layer, 1, page, places, v[kept])
        if self.sinks:
            first = k[:self.sinks].transpose(0, 1)
            self._sink_keys[layer][self._host_table[slot], :, :first.shape[1]] = first

    def _put(self, layer: int, which: int, pages: Tensor, index: Tensor, x: Tensor) -> None:
        """Keys (0) or values (1), at places `index` of their pages: [..., heads, head_dim]."""
        if self._type is None:
            self.pages[layer][pages, which, :, index] = x
            return
        values, scales = quantise(x, self._type)
        self.pages[layer].view(torch.uint8)[pages, which, :, index] = values.view(torch.uint8)
        self.scales[layer][pages, which, :, index] = scales

    def _page(self, layer: int, page: int, filled: int) -> Tensor:
        """A page's keys and values [2, heads, filled, head_dim], in place where they are whole."""
        held = self.pages[layer][page, :, :, :filled]
        if self._type is None:
            return held
        return (held.float() * self.scales[layer][page, :, :, :filled, None]).to(self.dtype)

    def _pages(self, layer: int, pages: Tensor) -> Tensor:
        """The rows' keys and values [B, 2, heads, length, head_dim], a copy."""
        if self._type is None:
            return self.pages[layer][pages, :, :, :self.length]
        held = self.pages[layer].view(torch.uint8)[pages, :, :, :self.length].view(self._type)
        return held.to(self.dtype) * self.scales[layer][pages, :, :, :self.length, None].to(self.dtype)

    def _keep_sinks(self, layer: int, k: Tensor, step: RingStep) -> None:
        """Keep a call's first keys, and let them come along with the window, as if they were just before it."""
        kept = self._sink_keys[layer]
        kept[step.pages, :, step.positions.clamp(max=self.sinks)] = k
        if step.turn is not None:
            turned = rotate(kept[step.pages[:, 0], :, :self.sinks], step.turn)  # [B, heads, sinks, head_dim]
            places = torch.arange(self.sinks, device=k.device)
            self._put(layer, 0, step.pages.expand(-1, self.sinks), places.expand(len(k), -1), turned.transpose(1, 2))


@dataclass(frozen=True)
class RingStep:
    """What `KVRing.begin` worked out for one step."""

    positions: Tensor  # [B, T]
    pages: Tensor  # [B, 1]
    index: Tensor  # [B, T]: where in the ring the step's keys go
    views: list[tuple[int, int, Tensor | None]]  # a row's page, how much of it is filled, its mask [T, filled]
    visible: Tensor | None  # [B, 1, 1, length, 1]: what was written since the slot started
    mask: Tensor | None  # [B, 1, T, length]
    turn: Tensor | None  # [B, 1, 1, head_dim / 2]: how far the sinks come along, once a window is full
