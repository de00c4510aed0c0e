"""The three stages of a step, each for B rows: encode, generate, decode; with the state of all slots.

Tensors have the size of a bucket; the given slots are those of the first rows, the others are padding and work on
the scratch slot, whose state nobody reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agent.moshi.checkpoint import Model
from agent.moshi.config import PAD_TOKEN
from agent.moshi.generate import Controls, Generated, Generator, GeneratorState, History, Prefilled
from agent.moshi.kv import PLAIN, KVRing, KVSettings, SlotRows
from agent.moshi.layers import Rows


class SlotClock:
    """How many steps each slot took in one stage. The host counts; the device is told in each step."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.scratch = slots
        self._device = device
        self.positions = np.zeros(slots + 1, np.int64)

    def rows(self, slots: Sequence[int], fresh: Sequence[bool]) -> Rows:
        """The rows of one step of these slots, filled up to a bucket's size; counts the step."""
        pairs = self.count(slots, fresh)
        return Rows.of([slot for slot, _ in pairs], [position for _, position in pairs], self._device)

    def count(self, slots: Sequence[int], fresh: Sequence[bool]) -> tuple[tuple[int, int], ...]:
        """The same as (slot, position) of each row."""
        positions = [0 if new else int(self.positions[slot]) for slot, new in zip(slots, fresh, strict=True)]
        for slot, position in zip(slots, positions, strict=True):
            self.positions[slot] = position + 1
        self.positions[self.scratch] = 0  # always at its start: what it holds is never read
        padding = bucket_of(len(slots)) - len(slots)
        return (*zip(slots, positions, strict=True), *((self.scratch, 0),) * padding)


def bucket_of(rows: int) -> int:
    """The batch that a step of so many rows runs as: a power of two.

    Only such sizes: a tensor of B numbers is then computed either all in vectors or all one by one, and a row's
    result doesn't depend on where it stands.
    """
    return 1 << (rows - 1).bit_length()


def _ready(ring: KVRing, rows: Rows) -> Rows:
    assert rows.host is not None
    ring.ready(rows.host)
    return rows


class Stages:
    """A model with room for `slots` conversations. All state is allocated here, none in a step."""

    def __init__(self, model: Model, slots: int, kv: KVSettings = PLAIN) -> None:
        self.model, self.slots, self.device, self.bucket = model, slots, model.device, bucket_of(slots)
        self.encoder = model.mimi.encoder_state(slots, self.device)
        self.decoder = model.voice.decoder_state(slots, self.device)
        self.generator = GeneratorState(model.lm, slots, self.bucket, kv)
        self._generator = Generator(model.lm)
        self.encode_clock, self.generate_clock, self.decode_clock = (SlotClock(slots, self.device) for _ in range(3))

    def state_rows(self) -> dict[str, SlotRows]:
        """Everything there is of a slot, as rows of these tensors' first dimension; the last row is scratch."""
        rows: dict[str, SlotRows] = {f"encoder.{name}": tensor for name, tensor in self.encoder.rows().items()}
        rows |= {f"generator.{name}": tensor for name, tensor in self.generator.rows().items()}
        rows |= {f"decoder.{name}": tensor for name, tensor in self.decoder.rows().items()}
        clocks = {"encoder": self.encode_clock, "generator": self.generate_clock, "decoder": self.decode_clock}
        rows |= {f"{stage}.position": torch.from_numpy(clock.positions) for stage, clock in clocks.items()}
        return rows

    @torch.inference_mode()
    def encode(self, slots: Sequence[int], fresh: Sequence[bool], pcm: Tensor, codebooks: int) -> Tensor:
        """pcm [bucket, frame_samples] -> codes [bucket, codebooks]."""
        rows = _ready(self.encoder.ring, self.encode_clock.rows(slots, fresh))
        return self.model.mimi.encode_step(pcm, codebooks, self.encoder, rows)

    @torch.inference_mode()
    def generate(self, slots: Sequence[int], fresh: Sequence[bool], caller_codes: Tensor, controls: Controls
                 ) -> Generated:
        """The caller's codes [bucket, caller codebooks] -> text and the agent's codes."""
        rows = _ready(self.generator.ring, self.generate_clock.rows(slots, fresh))
        return self.generate_rows(caller_codes, controls, rows)

    def generate_rows(self, caller_codes: Tensor, controls: Controls, rows: Rows) -> Generated:
        """The same of rows that the clock has counted, and whose ring is ready."""
        return self._generator.step(caller_codes, controls, self.generator, rows)

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], fresh: Sequence[bool], codes: Tensor) -> Tensor:
        """Codes of one frame [bucket, codebooks] -> pcm [bucket, frame_samples]."""
        rows = _ready(self.decoder.ring, self.decode_clock.rows(slots, fresh))
        return self.model.voice.decode_step(codes, self.decoder, rows)

    @torch.inference_mode()
    def prefill(self, history: History, embeddings: Tensor | None) -> Prefilled:
        """What a prompt leaves behind (Generator.prefill)."""
        return self._generator.prefill(history, embeddings)

    @torch.inference_mode()
    def begin(self, slot: int, prefilled: Prefilled) -> None:
        """A slot's next step is the first one after a prompt. May run beside steps of other slots."""
        self._generator.put(prefilled, self.generator, slot)
        self.generate_clock.positions[slot] = len(prefilled.history)
        self.encode_clock.positions[slot] = self.decode_clock.positions[slot] = 0

    @torch.inference_mode()
    def rebuild(self, slot: int, history: History, heard: Tensor, missed: Tensor, silence: Tensor, codebooks: int,
                before: History | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Bring a slot to where it would be after the steps of `history`, of which `heard` [n, frame_samples] is the
        caller's sound in the last ones, and after steps in which `missed` [m, frame_samples] is heard and the agent is
        silent, by the codes `silence` [agent codebooks]. The language model takes one pass over all of them, the codec
        goes through these sounds. Returns what was missed as codes [m, codebooks]. `before` are a prompt's steps, which
        nobody heard, `embeddings` what their first ones read. May run beside steps of other slots."""
        missed_codes = missed.new_zeros(len(missed), codebooks, dtype=torch.int64)
        for at, pcm in enumerate([*heard, *missed]):
            codes = self.encode([slot], [at == 0], pcm[None], codebooks)
            if at >= len(heard):
                missed_codes[at - len(heard)] = codes[0]
        history = History(
            torch.cat([history.text, history.text.new_full((len(missed),), PAD_TOKEN)]),
            torch.cat([history.agent, silence[:, None].expand(-1, len(missed))], dim=1),
            torch.cat([history.caller, missed_codes.T[:len(history.caller)]], dim=1))
        history = history if before is None else before.then(history)
        self._generator.rebuild(history, self.generator, slot, embeddings)
        self.generate_clock.positions[slot] = len(history)
        if len(history.agent):
            for at, frame in enumerate(self._generator.aligned(history, len(heard) + len(missed))):
                self.decode([slot], [at == 0], frame[None])
        return missed_codes
