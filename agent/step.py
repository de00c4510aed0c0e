"""What an engine is given and gives back in one step, as arrays on the host. B rows, one per slot that steps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from calls.wire import Persona

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class TextMode(IntEnum):
    """What may be sampled from the text stream. A forced token wins over it, but for TOLD."""

    FREE = 0
    TOLD = 1  # whether a word comes is the model's to say, which one is not: for any piece it takes the forced one
    WORD_ONLY = 2  # neither PAD nor EPAD: a word's piece


@dataclass(frozen=True)
class ModelInfo:
    """What a bridge has to know of a model."""

    name: str
    sample_rate: int
    frame_samples: int
    generated_codebooks: int
    agent_codebooks: int
    caller_codebooks: int
    largest_delay: int  # frames between a text token and the sound that goes with it
    context: int  # steps that the model remembers
    pause_heads: int
    pause_classes: int
    text_tokens: int  # a forced text token is below this
    codebook_size: int  # a forced code is below this


@dataclass
class Sampling:
    """How each row's tokens are drawn: arrays [B]. A draw is a function of (seed, step, codebook)."""

    seed: Ints
    text_temperature: Floats  # 0: the greatest
    text_top_k: Ints  # 0: from all
    audio_temperature: Floats
    audio_top_k: Ints
    pad_bias: Floats  # added to the logit of PAD: above 0 the agent speaks less
    repetition_penalty: Floats  # of the text's recent pieces; 1: none

    @classmethod
    def of(cls, rows: int, *, seed: int = 0, text_temperature: float = 0.7, text_top_k: int = 25,
           audio_temperature: float = 0.8, audio_top_k: int = 250, pad_bias: float = 0.0,
           repetition_penalty: float = 1.0) -> Sampling:
        """The same settings for `rows` rows; Moshi's own where none are given."""
        return cls(
            seed=np.full(rows, seed, np.int64),
            text_temperature=np.full(rows, text_temperature, np.float32),
            text_top_k=np.full(rows, text_top_k, np.int64),
            audio_temperature=np.full(rows, audio_temperature, np.float32),
            audio_top_k=np.full(rows, audio_top_k, np.int64),
            pad_bias=np.full(rows, pad_bias, np.float32),
            repetition_penalty=np.full(rows, repetition_penalty, np.float32),
        )


@dataclass
class StepInputs:
    slots: Ints  # [B], each at most once
    fresh: Bools  # [B]: this slot starts anew
    pcm: Floats  # [B, frame_samples]: the caller's frame
    text_mode: Ints  # [B]: TextMode
    forced_text: Ints  # [B], -1 where free
    forced_audio: Ints  # [B, generated codebooks], -1 where free; a forced code feeds the next depth step
    sampling: Sampling

    @classmethod
    def free(cls, slots: npt.ArrayLike, fresh: npt.ArrayLike, pcm: Floats, info: ModelInfo,
             sampling: Sampling) -> StepInputs:
        """Nothing forced, no mode."""
        rows = np.asarray(slots, np.int64)
        return cls(
            slots=rows, fresh=np.asarray(fresh, np.bool_), pcm=pcm, text_mode=np.zeros(len(rows), np.int64),
            forced_text=np.full(len(rows), -1, np.int64),
            forced_audio=np.full((len(rows), info.generated_codebooks), -1, np.int64), sampling=sampling)

    def check(self, info: ModelInfo, slots: int) -> None:
        """Raise ValueError, one line, for what no engine could step."""
        rows = len(self.slots)
        shapes = {
            "slots": (self.slots, (rows,)), "fresh": (self.fresh, (rows,)),
            "pcm": (self.pcm, (rows, info.frame_samples)), "text_mode": (self.text_mode, (rows,)),
            "forced_text": (self.forced_text, (rows,)),
            "forced_audio": (self.forced_audio, (rows, info.generated_codebooks)),
        } | {f"sampling.{name}": (value, (rows,)) for name, value in vars(self.sampling).items()}
        for name, (value, shape) in shapes.items():
            if value.shape != shape:
                raise ValueError(f"step: {name} has shape {list(value.shape)}, not {list(shape)}")
        if rows == 0:
            raise ValueError("step: no rows")
        if self.slots.min() < 0 or self.slots.max() >= slots:
            raise ValueError(f"step: slot {self._first_outside(slots)} is none of 0 to {slots - 1}")
        if len(np.unique(self.slots)) != rows:
            raise ValueError(f"step: a slot stands twice in {self.slots.tolist()}")
        if not np.isfinite(self.pcm).all():
            raise ValueError("step: pcm is not finite")
        for name, value, least, below in (
                ("text_mode", self.text_mode, 0, len(TextMode)),
                ("forced_text", self.forced_text, -1, info.text_tokens),
                ("forced_audio", self.forced_audio, -1, info.codebook_size)):
            if value.size and (value.min() < least or value.max() >= below):
                raise ValueError(f"step: {name} must be from {least} to {below - 1}")
        if ((self.text_mode == TextMode.TOLD) & (self.forced_text < 0)).any():
            raise ValueError("step: a row is told no word")
        sampling = self.sampling
        if min(sampling.text_temperature.min(), sampling.audio_temperature.min()) < 0:
            raise ValueError("step: a temperature is below 0")
        if sampling.repetition_penalty.min() <= 0:
            raise ValueError("step: a repetition penalty must be above 0")

    def _first_outside(self, slots: int) -> int:
        return next(int(slot) for slot in self.slots if not 0 <= slot < slots)


@dataclass
class StepOutputs:
    pcm: Floats  # [B, frame_samples]: the agent's frame; silence until there is one
    text: Ints  # [B]: taken
    sampled_text: Ints  # [B]: what the model would have taken, in no mode and with nothing forced
    agent_codes: Ints  # [B, generated codebooks], as taken in this step; -1 where the model doesn't generate
    caller_codes: Ints  # [B, caller codebooks]: what was heard in this step
    caller_text: Ints  # [B]: the caller's words, from a speech-to-text model beside this one; -1: none
    pauses: Floats  # [B, heads, classes]: probabilities of pauses, from models that have the heads
    text_entropy: Floats  # [B], nats, of the last 64 text tokens
    audio_entropy: Floats  # [B], the same of the agent's codebooks: their median
    codebook_spread: Floats  # [B]: the deviation between the entropies of the agent's codebooks


@dataclass(frozen=True)
class Past:
    """T steps that a slot took somewhere else, in step order, and the caller's sound: what was heard in the last n of
    them, and what was missed since, while the agent was silent."""

    text: Ints  # [T]
    agent_codes: Ints  # [generated codebooks, T], -1 where the model doesn't generate
    caller_codes: Ints  # [caller codebooks, T]
    caller_text: Ints  # [T], -1: none
    heard: Floats  # [n, frame_samples]
    missed: Floats  # [m, frame_samples]
    whole: bool = True  # these are all of its steps since it began

    def check(self, info: ModelInfo) -> None:
        """Raise ValueError, one line, for what no slot of the model can have been through."""
        count = len(self.text)
        shapes: dict[str, tuple[Ints | Floats, tuple[int, ...]]] = {
            "text": (self.text, (count,)), "agent_codes": (self.agent_codes, (info.generated_codebooks, count)),
            "caller_codes": (self.caller_codes, (info.caller_codebooks, count)),
            "caller_text": (self.caller_text, (count,)), "heard": (self.heard, (len(self.heard), info.frame_samples)),
            "missed": (self.missed, (len(self.missed), info.frame_samples))}
        for name, (value, shape) in shapes.items():
            if value.shape != shape:
                raise ValueError(f"past: {name} has shape {list(value.shape)}, not {list(shape)}")
        for name, value, least, below in (
                ("text", self.text, 0, info.text_tokens), ("caller_codes", self.caller_codes, 0, info.codebook_size),
                ("agent_codes", self.agent_codes[:info.agent_codebooks], 0, info.codebook_size)):
            if value.size and (value.min() < least or value.max() >= below):
                raise ValueError(f"past: {name} must be from {least} to {below - 1}")
        if not (np.isfinite(self.heard).all() and np.isfinite(self.missed).all()):
            raise ValueError("past: the caller's sound is not finite")


class Engine(Protocol):
    """Steps any of its slots together. One thread at a time."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def slots(self) -> int: ...

    @property
    def silence(self) -> Ints:
        """[generated codebooks]: the agent's codes when it says nothing, -1 where a code isn't the agent's."""
        ...

    def default_sampling(self, rows: int) -> Sampling:
        """The model's own settings."""
        ...

    def prepare(self, persona: Persona) -> None:
        """What `begin` needs, which takes its time at first. On any thread. Raises ValueError for what the model wasn't
        taught."""
        ...

    def begin(self, slot: int, persona: Persona) -> None:
        """A slot, which isn't stepped meanwhile, starts as somebody in its next step, which isn't `fresh` then. On any
        thread. Raises ValueError for what the model wasn't taught; then nothing has changed."""
        ...

    def release(self, slot: int) -> None:
        """A slot isn't stepped any more until it starts anew, in one way or another. Not while it is stepped."""
        ...

    def rebuild(self, slot: int, past: Past, persona: Persona | None = None) -> None:
        """Bring a slot, which isn't stepped meanwhile, to where it would be after these steps, which it took as
        somebody where there is a `persona`. On any thread. Raises ValueError."""
        ...

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        """One frame of each given slot; `transcribe`: also what its caller says, where a model writes that. Raises
        ValueError for inputs that don't fit; then nothing has changed."""
        ...
