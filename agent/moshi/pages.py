"""Which pages of a ring each slot holds: one of its own, and others from a pool, which it takes as it grows older.

Only the host decides here, between steps; a step reads `table` and `lengths` on the device. A slot that finds the pool
empty keeps what it has: its ring stays as long as its pages reach, so it forgets sooner, and nothing else changes.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch


class Pages:
    """Pages of `size` positions for rings of `length`; the last slot is scratch. May be called from any thread."""

    def __init__(self, slots: int, length: int, size: int, pool: int | None, device: torch.device) -> None:
        """`pool` pages beside each slot's own; None: enough for all."""
        self.size, self.length, self.scratch = size, length, slots
        self.most = math.ceil(length / size)  # of one slot
        extra = slots * (self.most - 1)
        self.count = slots + 1 + (extra if pool is None else min(pool, extra))
        own = torch.arange(slots + 1, device=device)
        self.table = own[:, None].repeat(1, self.most)  # [slots + 1, most]: what isn't held reads as the slot's own
        self.lengths = torch.full((slots + 1,), length, device=device)
        self.host_lengths = np.full(slots + 1, length, np.int64)
        self._held = [[slot] for slot in range(slots + 1)]
        self._free = list(range(self.count - 1, slots, -1))
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Pages in the pool."""
        return len(self._free)

    def held(self, slot: int) -> list[int]:
        """In the order of their positions."""
        return self._held[slot]

    def hold(self, slot: int, positions: int) -> list[int]:
        """See that a slot's first `positions` positions have places, as long as its ring; returns the pages that are
        new to it. Where the pool has none left its ring ends with those that it has."""
        held, new = self._held[slot], list[int]()
        while len(held) * self.size < min(positions, int(self.host_lengths[slot])):
            with self._lock:
                page = self._free.pop() if self._free else None
            if page is None:
                self._end_at(slot, len(held) * self.size)
                break
            self.table[slot, len(held)] = page  # two numbers of the host: no wait
            held.append(page)
            new.append(page)
        return new

    def release(self, slot: int) -> None:
        """All but its own go back to the pool; its ring may be whole again."""
        own, *others = self._held[slot]
        self._held[slot] = [own]
        if others:
            self.table[slot] = own
        if self.host_lengths[slot] != self.length:
            self._end_at(slot, self.length)
        with self._lock:
            self._free += reversed(others)

    def take(self, slot: int, positions: int, length: int) -> list[int]:
        """As `hold` after a `release`, for a ring that was `length` long. Raises ValueError where the pool has too few
        pages; then the slot holds its own alone."""
        self.release(slot)
        wanted = math.ceil(min(positions, length) / self.size)
        new = self.hold(slot, wanted * self.size)
        if len(self._held[slot]) < wanted:
            self.release(slot)
            raise ValueError(f"only {self.free} pages of {self.size} positions are free, {wanted - 1} are wanted")
        if length != self.length:
            self._end_at(slot, length)
        return new

    def _end_at(self, slot: int, length: int) -> None:
        self.host_lengths[slot] = length
        self.lengths[slot] = length
