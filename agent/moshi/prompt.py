"""What a model that was taught roles has been through before a call begins: a voice, then a role (PersonaPlex).

    the agent's sound   the voice's frames │ silence │ silence ............ │ silence
    the agent's text    PAD                │ PAD     │ <system> role <system> │ PAD
    the caller's sound  a sine             │ a sine  │ a sine               │ a sine
                                             6 frames                          6 frames

All of it is known beforehand, so it is one pass; what that leaves is kept and copied into a slot. Each token stands
where generation would have put it, the last of them right before the call's first frame: NVIDIA's own code loses the
first frame of the prompt and hears the caller a frame later.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.moshi.checkpoint import Model
from agent.moshi.config import PAD_TOKEN
from agent.moshi.generate import History

SILENT_FRAMES = 6  # after the voice, and after the role: half a second
MARK = "<system>"
_SINE_HZ, _SINE_PEAK, _SINE_FRAMES = 440, 0.5, 25
# What the published Mimi makes of silence and of the sine, as the published model was taught.
_PUBLISHED = (2048, 8)  # codebook size, codebooks of a side
_SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
_SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)

# What torch raises of a file that isn't one of its own, and what a file of its own with something else in it leads to.
_NO_VOICE = (pickle.UnpicklingError, struct.error, EOFError, RuntimeError, ValueError, LookupError, TypeError,
             AttributeError)


class PromptError(ValueError):
    """One line that says what is wrong with a role or a voice."""


@dataclass(frozen=True)
class Voice:
    """How the agent sounds: as codes [agent codebooks, frames]; or as what the model's first positions read
    [frames, dim], and the tokens at the positions after them [streams, 1 + largest delay]."""

    codes: Tensor | None = None
    embeddings: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """The steps of a prompt; what its first positions read, where that isn't what these steps took."""

    history: History
    embeddings: Tensor | None = None


def taught_roles(model: Model) -> bool:
    """PersonaPlex by its shape, others by the key `roles` of their config."""
    config = model.lm.config
    return config.generated_codebooks > config.agent_codebooks or bool(model.config.get("roles"))


def build(model: Model, voice: Voice | None, role: Sequence[int]) -> Prompt:
    """The prompt of a voice, if there is one, and a role's tokens, if there are any."""
    agent = model.lm.config.agent_codebooks
    silence, sine = _silence(model), _sine(model)
    embedded = 0 if voice is None or voice.embeddings is None else len(voice.embeddings)
    codes = silence[:, :0] if voice is None or voice.codes is None else voice.codes
    before = embedded + codes.shape[1]
    text = [PAD_TOKEN] * (before + SILENT_FRAMES) + list(role) + [PAD_TOKEN] * SILENT_FRAMES * bool(role)
    frames = torch.cat([silence.expand(-1, embedded), codes, silence.expand(-1, len(text) - before)], dim=1)
    taken = torch.stack([frames[k, (torch.arange(len(text)) - delay).clamp(min=0)]
                         for k, delay in enumerate(model.lm.config.delays[1:1 + agent])])
    written = torch.tensor(text)
    if voice is not None and voice.tokens is not None:
        for position, tokens in enumerate(voice.tokens.T, embedded):  # taken in the step before it is read
            for stream, delay in enumerate(model.lm.config.delays[:1 + agent]):
                if position - embedded <= delay:  # the voice's last frame, as far as it is delayed
                    (written[None] if stream == 0 else taken[stream - 1:])[0, position - 1] = tokens[stream]
    history = History(*(part.to(model.device) for part in (written, taken, sine.expand(-1, len(text)))))
    return Prompt(history, None if voice is None or voice.embeddings is None else voice.embeddings.to(model.device))


def voice_of_sound(model: Model, samples: Tensor) -> Voice:
    """As a recording [samples] sounds, at the codec's rate."""
    frame = model.voice.config.frame_samples
    whole = torch.nn.functional.pad(samples, (0, -len(samples) % frame))
    with torch.inference_mode():
        codes = model.voice.encode(whole[None].to(model.device), model.lm.config.agent_codebooks)[0]
    return Voice(codes=codes.cpu())


def voice_of_embeddings(model: Model, data: bytes) -> Voice:
    """As one of the published `.pt` files says: what the model read in each step of a voice, and its ring of tokens
    after them. Raises PromptError."""
    try:
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        embeddings, ring = content["embeddings"], content["cache"]
        embeddings = embeddings.reshape(len(embeddings), -1)
    except _NO_VOICE:
        raise PromptError("isn't a voice's file with embeddings and cache") from None
    config = model.lm.config
    if embeddings.shape[1] != config.temporal.dim or ring.shape[:2] != (1, config.streams):
        raise PromptError(f"is of a model with dim {embeddings.shape[1]} and {ring.shape[1]} streams")
    count, length = len(embeddings), ring.shape[2]
    if not count or length < config.largest_delay + 2:
        raise PromptError("holds no frames")
    after = [(count + step) % length for step in range(1 + config.largest_delay)]
    return Voice(embeddings=embeddings.to(model.lm.dtype), tokens=ring[0][:, after])


def _silence(model: Model) -> Tensor:
    return torch.tensor(_SILENCE if _is_published(model) else model.silence())[:, None]


def _sine(model: Model) -> Tensor:
    """The caller's codes during the prompt [caller codebooks, 1]."""
    if _is_published(model):
        return torch.tensor(_SINE)[:, None]
    codec = model.mimi.config
    times = torch.arange(_SINE_FRAMES * codec.frame_samples, device=model.device) / codec.sample_rate
    with torch.inference_mode():
        wave = _SINE_PEAK * torch.sin(2 * torch.pi * _SINE_HZ * times)
        return model.mimi.encode(wave[None], model.lm.config.caller_codebooks)[0, :, -1:].cpu()


def _is_published(model: Model) -> bool:
    config = model.lm.config
    return (config.audio_card, config.agent_codebooks) == _PUBLISHED == (config.audio_card, config.caller_codebooks)
