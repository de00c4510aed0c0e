"""What the caller says: a speech-to-text checkpoint, streamed for many calls over the codes that are heard.

    codes ─ Transcriber ─▶ text tokens, pauses ─ CallerWords ─▶ words in the caller's own time

Such a checkpoint is a language model without a depth transformer, whose text comes late, and that may have pause heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from agent.moshi.checkpoint import CheckpointError, Model
from agent.moshi.generate import Controls, Generator, GeneratorState, History
from agent.moshi.kv import PLAIN, KVSettings, SlotRows
from agent.moshi.layers import Rows
from agent.moshi.lm import LanguageModel
from agent.moshi.stages import SlotClock, bucket_of
from agent.moshi.text import TimedWord, Tokenizer, WordTimer

PAUSES_S = (0.5, 1.0, 2.0, 3.0)  # a pause head each, in their order
PAUSE_CLASS = 0  # of a head's classes: the pause lasts at least so long


class Transcribed(NamedTuple):
    """What one step made of one frame of each row's caller; on the model's device."""

    text: Tensor  # [B] int64, of the text stream: a piece of a word, EPAD or PAD
    pauses: Tensor  # [B, heads] float32: how likely the caller is in a pause of at least PAUSES_S


def lag_frames(model: Model) -> int:
    """How many steps after the frame in which a word begins its first piece is written.

    It is one less than the delay that the checkpoint names: that counts from column to column of its training, where
    a text token is predicted from the sound up to the frame before, and a step here hears its own frame. Raises
    CheckpointError for a model that transcribes nothing.
    """
    stt = model.config.get("stt_config")
    if not isinstance(stt, dict):
        raise CheckpointError(f"{model.name}: config.json has no stt_config: it is no speech-to-text model")
    delay_s = stt.get("audio_delay_seconds")
    if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 < delay_s < 60:
        raise CheckpointError(f"{model.name}: stt_config: audio_delay_seconds must be seconds above 0, not {delay_s!r}")
    if model.lm.config.generated_codebooks:
        raise CheckpointError(f"{model.name}: a speech-to-text model generates no sound, dep_q must be 0")
    return lag_of(delay_s, model.mimi.config.frame_rate)


def lag_of(delay_s: float, frame_rate: float) -> int:
    """`lag_frames` of a delay in seconds."""
    return max(0, round(delay_s * frame_rate) - 1)


def check_same_codes(agent: Model, stt: Model) -> None:
    """Raise CheckpointError if the two models' Mimis make different codes of the same sound."""
    lag_frames(stt)
    codebooks = stt.lm.config.caller_codebooks
    if codebooks > agent.mimi.config.codebooks:
        raise CheckpointError(f"{stt.name}: hears {codebooks} codebooks, {agent.name} has "
                              f"{agent.mimi.config.codebooks}")
    ours, theirs = agent.mimi.state_dict(), stt.mimi.state_dict()
    for name, tensor in theirs.items():
        if not name.startswith(("encoder", "downsample", "quantizer")) or name.endswith("output_proj.weight"):
            continue
        other = ours.get(name)
        if other is None and name.startswith("quantizer.rvq_rest"):
            continue  # a codebook past those that are there
        if other is None or other.shape != tensor.shape or not torch.equal(other.cpu(), tensor.cpu()):
            raise CheckpointError(f"{stt.name}: hears by another Mimi than {agent.name} ({name} differs)")


class Transcriber:
    """A speech-to-text model with room for `slots` calls. All state is allocated here, none in a step.

    It hears the codes of its own checkpoint's Mimi. (A silence that a checkpoint wants before the first sound,
    audio_silence_prefix_seconds, is left out: what is said in a call's first moment may be missed.)
    """

    def __init__(self, lm: LanguageModel, slots: int, kv: KVSettings = PLAIN) -> None:
        self.slots, self.codebooks, self.device = slots, lm.config.caller_codebooks, lm.device
        self.pause_heads = lm.config.extra_heads
        self._generator = Generator(lm)
        self.state = GeneratorState(lm, slots, bucket_of(slots), kv)
        self.clock = SlotClock(slots, self.device)
        self._controls: dict[int, Controls] = {}  # by the bucket's size

    def step(self, slots: Sequence[int], fresh: Sequence[bool], codes: Tensor) -> Transcribed:
        """The next frame of these slots: codes [bucket, codebooks or more] -> the bucket's rows."""
        rows = self.clock.rows(slots, fresh)
        assert rows.host is not None
        self.state.ring.ready(rows.host)
        return self.step_rows(codes, rows)

    @torch.inference_mode()
    def step_rows(self, codes: Tensor, rows: Rows) -> Transcribed:
        """The same of rows that the clock has counted, and whose ring is ready."""
        if rows.size not in self._controls:
            self._controls[rows.size] = Controls.greedy(rows.size, 0, self.device)
        generated = self._generator.step(codes[:, :self.codebooks], self._controls[rows.size], self.state, rows)
        return Transcribed(generated.text, generated.pauses[..., PAUSE_CLASS])

    def state_rows(self) -> dict[str, SlotRows]:
        """Everything there is of a slot, as rows of these tensors' first dimension; the last row is scratch."""
        return {**self.state.rows(), "position": torch.from_numpy(self.clock.positions)}

    def begin(self, slot: int) -> None:
        """A slot starts anew in its next step."""
        self.clock.positions[slot] = 0

    @torch.inference_mode()
    def rebuild(self, slot: int, text: Tensor, codes: Tensor) -> None:
        """Bring a slot to where it would be after it wrote `text` [T] of these codes [codebooks, T]."""
        history = History(text, codes.new_zeros(0, len(text)), codes)
        self._generator.rebuild(history, self.state, slot)
        self.clock.positions[slot] = len(text)


@dataclass
class CallerWords:
    """One call's text tokens, a step at a time, to words with the frames in which the caller says them."""

    tokenizer: Tokenizer
    lag_frames: int
    _timer: WordTimer = field(default_factory=WordTimer)

    def feed(self, k: int, token: int) -> TimedWord | None:
        """Take the text of the step that heard frame k; returns the word that it finishes, if one. What is written
        before anybody can have said it is left out."""
        said_k = k - self.lag_frames
        return self._timer.feed(said_k, self.tokenizer.piece(token)) if said_k >= 0 else None

    def end(self) -> TimedWord | None:
        """The word that the call's end cuts short, if one."""
        return self._timer.end()


def transcribe(transcriber: Transcriber, tokenizer: Tokenizer, lag: int, calls: Sequence[Tensor]
               ) -> list[list[TimedWord]]:
    """Each call's words, from its caller's codes [codebooks, frames]; as many calls at once as there are slots.

    What is said in the last `lag` frames of a call is missed.
    """
    return [words for first in range(0, len(calls), transcriber.slots)
            for words in _together(transcriber, tokenizer, lag, calls[first:first + transcriber.slots])]


def _together(transcriber: Transcriber, tokenizer: Tokenizer, lag: int, calls: Sequence[Tensor]
              ) -> Iterator[list[TimedWord]]:
    tokens: list[list[int]] = [[] for _ in calls]
    for k in range(max((call.shape[1] for call in calls), default=0)):
        slots = [slot for slot, call in enumerate(calls) if k < call.shape[1]]
        codes = torch.zeros(bucket_of(len(slots)), transcriber.codebooks, dtype=torch.int64)
        for row, slot in enumerate(slots):
            codes[row] = calls[slot][:transcriber.codebooks, k]
        text = transcriber.step(slots, [k == 0] * len(slots), codes.to(transcriber.device)).text.tolist()
        for row, slot in enumerate(slots):
            tokens[slot].append(text[row])
    for written in tokens:
        words = CallerWords(tokenizer, lag)
        finished = [words.feed(k, token) for k, token in enumerate(written)]
        yield [word for word in (*finished, words.end()) if word is not None]
