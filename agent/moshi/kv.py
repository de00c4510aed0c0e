"""What a transformer remembers of each slot: the keys and values of its last positions, whole or in 8 bits.

    position p lies at   p                                        p < sinks (kept for good) or the ring isn't full
                         sinks + (p - sinks) % (length - sinks)   oldest overwritten first
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.moshi.config import TransformerConfig
from agent.moshi.layers import Rows, rotate, rotations
from agent.moshi.pages import Pages
from agent.moshi.quantised import TYPES, EightBits, quantise

CACHE_LINE_FLOATS = 16


@dataclass(frozen=True)
class KVSettings:
    """`kind`: in how many bits keys and values are kept, None: the model's own type. `sinks`: first positions of a call
    that attention never loses, at the far end of the window once it is full (Xiao et al. 2023): long calls then keep
    the positions on which trained attention leans. `page`: positions of a page, of which a call takes more as it grows
    older; 0: a page holds a whole ring. `pool`: pages beside each call's first; None: enough for all."""

    kind: EightBits | None = None
    sinks: int = 0
    page: int = 0
    pool: int | None = None


PLAIN = KVSettings()


class KVRing:
    """Keys and values of one transformer for all slots.

    A slot's ring lies in pages, found through `pages_of.table`. It holds `context + positions_per_step - 1` positions,
    so that every query of a step that brings several still sees its whole context. The last slot is scratch. In 8 bits
    each position of each head has a scale.

    A CPU reads a slot's page in place, where it holds the whole ring: a copy of what is read would cost more than
    reading it. Elsewhere a step's pages are gathered, as far as it reaches (Rows.reach), and masked: so nothing of it
    depends on what the host knows.
    """

    in_place_on: tuple[str, ...] = ("cpu",)  # kinds of devices

    def __init__(self, config: TransformerConfig, slots: int, positions_per_step: int, device: torch.device,
                 dtype: torch.dtype, kv: KVSettings = PLAIN) -> None:
        assert config.context is not None
        assert config.max_period is not None
        if kv.sinks and (positions_per_step > 1 or kv.sinks >= config.context):
            raise ValueError(f"sinks must be fewer than the context's {config.context} positions")
        if kv.page and kv.sinks >= kv.page:
            raise ValueError(f"sinks must be fewer than a page's {kv.page} positions")
        self.context, self.sinks, self.dtype = config.context, kv.sinks, dtype
        self.positions_per_step = positions_per_step
        self.length = config.context + positions_per_step - 1
        self._max_period, head_dim = config.max_period, config.dim // config.heads
        # whole cache lines a head: where a page lies in memory must not change how it is summed
        whole = math.ceil(self.length / CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS
        size = kv.page if 0 < kv.page < self.length else whole
        self.pages_of = Pages(slots, self.length, size, kv.pool, device)
        self.allocated = self.pages_of.most * size  # positions of a slot that holds all it can
        self._type = TYPES[kv.kind] if kv.kind else None
        self.read_in_place = device.type in self.in_place_on and self.pages_of.most == 1

        def per_layer(rows: int, *shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(config.layers, rows, *shape, device=device, dtype=dtype)

        # [layers, pages, 2 (keys and values), heads, size, head_dim]; what is gathered lies position by position, so
        # that a slot's pages are one run of them
        count, heads = self.pages_of.count, config.heads
        by_head, by_position = (2, heads, size), (size, 2, heads)
        shape = by_head if self.read_in_place else by_position
        self._stored = per_layer(count, *shape, head_dim, dtype=self._type or dtype)
        self._stored_scales = per_layer(count, *shape, dtype=torch.float32) if kv.kind else None
        self.pages: list[Tensor] = list(self._stored)
        self.scales: list[Tensor] = [] if self._stored_scales is None else list(self._stored_scales)
        if not self.read_in_place:
            self.pages = [pages.permute(0, 2, 3, 1, 4) for pages in self.pages]
            self.scales = [scales.permute(0, 2, 3, 1) for scales in self.scales]
        # the sinks' keys as they were, to be turned anew as the window moves on; a place more for all later keys
        self._sink_keys = list(per_layer(slots + 1, heads, kv.sinks + 1, head_dim, dtype=dtype) if kv.sinks else [])
        self._masks = self._mask_table() if self.read_in_place and positions_per_step > 1 else None

    def rows(self) -> dict[str, SlotRows]:
        """All there is of a slot, as rows of these; `take` comes before a slot's rows are set."""
        kinds: dict[str, Sequence[SlotRows]] = {
            "layer{}": self.pages, "layer{}.scales": self.scales, "layer{}.sinks": self._sink_keys}
        if self.pages_of.most > 1:
            scales = [] if self._stored_scales is None else list(self._stored_scales)
            kinds["layer{}"] = [PagedRows(stored, self.pages_of) for stored in self._stored]
            kinds["layer{}.scales"] = [PagedRows(stored, self.pages_of) for stored in scales]
            kinds["length"] = [torch.from_numpy(self.pages_of.host_lengths)]
        return {name.format(i): part for name, parts in kinds.items() for i, part in enumerate(parts)}

    def take(self, slot: int, positions: int, length: int) -> None:
        """See that a slot has what it takes for so many positions of a ring that was so long. Raises ValueError."""
        if self.pages_of.most > 1:
            self._clean(self.pages_of.take(slot, positions, length))

    def ready(self, steps: Sequence[tuple[int, int]]) -> None:
        """Before a step of these (slot, position): see that each has a page to write to. What was left in a page by
        others goes: a NaN among it would survive a mask, as 0 * NaN is NaN. Reading in place nothing is needed."""
        if self.read_in_place:
            return
        for slot, position in steps:
            if slot == self.pages_of.scratch:
                continue  # nobody reads it
            if position == 0:
                self.release(slot)
                self._clean(self.pages_of.held(slot))
                for kept in self._sink_keys:
                    kept[slot].zero_()
            elif position % self.pages_of.size == 0 and self.pages_of.most > 1:
                self._clean(self.pages_of.hold(slot, position + 1))

    def reaches(self) -> tuple[int, ...]:
        """How far steps may look, in positions from small to large: all the ring, or as many pages as a power of two.
        None are told apart by what is read in place."""
        size, most = self.pages_of.size, self.pages_of.most
        pages = [] if self.read_in_place else [1 << power for power in range((most - 1).bit_length())]
        return (*(size * count for count in pages), *(() if self.read_in_place else (self.length,)))

    def release(self, slot: int) -> None:
        """The slot isn't stepped any more until it starts anew: its pages go back to the pool."""
        if self.pages_of.most > 1:
            self.pages_of.release(slot)

    def _clean(self, pages: list[int]) -> None:
        for page in pages:
            self._stored[:, page].zero_()  # all layers at once
            if self._stored_scales is not None:
                self._stored_scales[:, page].zero_()

    def _mask_table(self) -> Tensor:
        """What a step's queries see of the ring when its last key lies at index i: [length, T, length]."""
        steps, length = self.positions_per_step, self.length
        last, index = torch.arange(length)[:, None, None], torch.arange(length)[None, None, :]
        age = (last - index) % length - (steps - 1 - torch.arange(steps))[None, :, None]  # of the key, to the query
        return torch.zeros(length, steps, length).masked_fill((age < 0) | (age >= self.context), -math.inf)

    def _places(self, positions: Tensor, length: Tensor) -> Tensor:
        """Where in their rings of `length` they lie."""
        later = self.sinks + (positions - self.sinks) % (length - self.sinks)
        return torch.where(positions < self.sinks, positions, later)

    def begin(self, rows: Rows) -> RingStep:
        """Where this step's keys go and what its queries see, for all layers."""
        steps, sinks, size = self.positions_per_step, self.sinks, self.pages_of.size
        first = rows.positions * steps
        positions = first[:, None] + torch.arange(steps, device=first.device)  # [B, T]
        lengths = self.pages_of.lengths.index_select(0, rows.slots)[:, None]  # [B, 1]
        table = self.pages_of.table.index_select(0, rows.slots)  # [B, pages of a slot]
        places = self._places(positions, lengths)
        pages, index = table.gather(1, places // size), places % size
        turn = None
        if sinks and (not self.read_in_place or any(position >= self.context for _, position in rows.host or ())):
            # how far the window is past its first place: so far the sinks come along
            shift = (positions[:, 0] - (lengths[:, 0] - 1)).clamp(min=0)
            turn = rotations(shift, self.pages[0].shape[-1], self._max_period)[:, None, None]
        if self.read_in_place:
            assert rows.host is not None
            views: list[tuple[int, int, Tensor | None]] = []
            for slot, position in rows.host:
                last = (position + 1) * steps - 1
                filled = min(last + 1, self.length)
                seen = None if self._masks is None else self._masks[last % self.length, :, :filled]
                views.append((self.pages_of.held(slot)[0], filled, seen))
            return RingStep(rows.slots, positions, pages, index, views, table, None, turn)
        reach = self.length if rows.reach is None else min(self.length, rows.reach * steps)
        table = table[:, :math.ceil(reach / size)]
        index_held = torch.arange(table.shape[1] * size, device=first.device)
        last_position = positions[:, -1:]
        held = last_position - (last_position - index_held) % (lengths - sinks)  # [B, reach]: the key's position
        if sinks:
            held = torch.where(index_held < sinks, index_held, torch.where(held < sinks, -1, held))
            held = torch.where(held <= last_position, held, -1)
        held = torch.where(index_held < lengths, held, -1)
        age = positions[:, :, None] - held[:, None, :]  # [B, T, reach]
        young = (age < self.context) | (index_held < sinks)
        mask = ((held[:, None, :] >= 0) & (age >= 0) & young)[:, None]  # [B, 1, T, reach]
        return RingStep(rows.slots, positions, pages, index, [], table, mask, turn)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: RingStep) -> Tensor:
        """Write k, v and let q attend; all [B, T, heads, head_dim]. Returns [B, T, heads * head_dim]."""
        self._put(layer, 0, step.pages, step.index, k)
        self._put(layer, 1, step.pages, step.index, v)
        if self.sinks:
            self._keep_sinks(layer, k, step)
        q = q.transpose(1, 2)  # [B, heads, T, head_dim]
        if self.read_in_place:
            views = [self._page(layer, page, filled) for page, filled, _ in step.views]
            out = torch.cat([
                F.scaled_dot_product_attention(q[row:row + 1], both[None, 0], both[None, 1], attn_mask=mask)
                for row, (both, (_, _, mask)) in enumerate(zip(views, step.views, strict=True))])
        else:
            keys, values = self._gathered(layer, step.table)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=step.mask)
        return out.transpose(1, 2).flatten(2)

    def fill(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a sequence's keys and values [T, heads, head_dim] from position 0 on, as far as they are held; the
        slot starts anew with the first layer's."""
        count = len(k)
        if layer == 0:
            self.ready([(slot, 0)])
            self._clean([] if self.read_in_place else self.pages_of.hold(slot, count))
        length = int(self.pages_of.host_lengths[slot])
        kept = torch.arange(max(0, count - (length - self.sinks)), count, device=k.device)
        sinks = min(self.sinks, max(0, count - (length - self.sinks)))
        kept = torch.cat([torch.arange(sinks, device=k.device), kept])
        places = self._places(kept, torch.full_like(kept, length))
        pages = self.pages_of.table[slot, places // self.pages_of.size]
        places = places % self.pages_of.size
        self._put(layer, 0, pages, places, k[kept])
        self._put(layer, 1, pages, places, v[kept])
        if self.sinks:
            first = k[:self.sinks].transpose(0, 1)
            self._sink_keys[layer][slot, :, :first.shape[1]] = first

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

    def _gathered(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and the values of pages [B, pages], copies: each [B, heads, positions, head_dim]."""
        if self._type is None:  # [B, positions, 2, heads, head_dim]
            both = self._stored[layer][table].flatten(1, 2)
        else:
            held = self._stored[layer].view(torch.uint8)[table].flatten(1, 2).view(self._type)
            assert self._stored_scales is not None
            both = held.to(self.dtype) * self._stored_scales[layer][table].flatten(1, 2)[..., None].to(self.dtype)
        return _by_head(both, 0), _by_head(both, 1)

    def _keep_sinks(self, layer: int, k: Tensor, step: RingStep) -> None:
        """Keep a call's first keys, and let them come along with the window, as if they were just before it."""
        kept, slots = self._sink_keys[layer], step.slots[:, None]
        kept[slots, :, step.positions.clamp(max=self.sinks)] = k
        if step.turn is not None:  # not at all far yet: as they were
            turned = rotate(kept[step.slots, :, :self.sinks], step.turn)  # [B, heads, sinks, head_dim]
            places = torch.arange(self.sinks, device=k.device)
            first = step.table[:, :1].expand(-1, self.sinks)  # the sinks are in a slot's first page
            self._put(layer, 0, first, places.expand(len(k), -1), turned.transpose(1, 2))


@dataclass(frozen=True)
class RingStep:
    """What `KVRing.begin` worked out for one step."""

    slots: Tensor  # [B]
    positions: Tensor  # [B, T]
    pages: Tensor  # [B, T]: where the step's keys go
    index: Tensor  # [B, T]: and where in the page
    views: list[tuple[int, int, Tensor | None]]  # in place: a row's page, how much of it is filled, mask [T, filled]
    table: Tensor  # [B, pages]: what else is gathered
    mask: Tensor | None  # [B, 1, T, positions of these]
    turn: Tensor | None  # [B, 1, 1, head_dim / 2]: how far the sinks come along, once a window is full


def _by_head(both: Tensor, which: int) -> Tensor:
    """Keys (0) or values (1) of both [B, positions, 2, heads, head_dim], as attention takes them."""
    out: Tensor = both[:, :, which].transpose(1, 2)
    return out


class PagedRows:
    """What all slots hold in pages [pages, size, …], as a row per slot: its positions, zero past what it holds."""

    def __init__(self, stored: Tensor, pages: Pages) -> None:
        self._stored, self._pages = stored, pages
        self.shape = torch.Size((len(pages.table), pages.most * pages.size, *stored.shape[2:]))
        self.dtype, self.device = stored.dtype, stored.device

    def __getitem__(self, slot: int) -> Tensor:
        held = self._pages.held(slot)
        row = torch.zeros(self.shape[1:], dtype=self.dtype, device=self.device)
        for at, page in enumerate(held):
            row[at * self._pages.size:(at + 1) * self._pages.size] = self._stored[page]
        return row

    def __setitem__(self, slot: int, row: Tensor) -> None:
        for at, page in enumerate(self._pages.held(slot)):
            self._stored[page] = row[at * self._pages.size:(at + 1) * self._pages.size]


SlotRows = Tensor | PagedRows
