"""Batches of whole calls, in the time of the language model's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN
from agent.moshi.lm import LanguageModel
from agent.train.tokens import NO_INTENT, CallTokens

SHORTEST = 300  # frames of a call that begins in its middle
_ALIKE = 1.25  # by how much calls of a batch may differ in length
_NEAR_SPEECH = 12  # frames around speech that count as much: there, sound begins and ends


class Batch(NamedTuple):
    """B calls of T steps. Where a call is over, `text_counts` and `sounds` are False."""

    inputs: Tensor  # [B, streams, T]: the tokens before each step
    taken: Tensor  # [B, streams, T]: the tokens of each step
    text_counts: Tensor  # [B, T] bool: the text loss applies
    paced: Tensor  # [B, T] bool: only whether a word comes next is learnt of the text: the word itself is told
    sounds: Tensor  # [B, T] bool: the agent's codes are there and speech is in them or near
    quiet: Tensor  # [B, T] bool: they are there, and all is silent
    heard: Tensor  # [B, T]: the caller's words, late by the lag
    intent: Tensor  # [B, T]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


class Calls:
    """Calls ready for drawing. `lag`: frames by which the caller's words come after their begin. Where nobody
    answered, the agent's silence is heard, but isn't learnt from."""

    def __init__(self, calls: Sequence[CallTokens], lm: LanguageModel, lag: int, *, answered: bool = True) -> None:
        self.agent_codebooks = lm.config.agent_codebooks
        self.initial = lm.initial_tokens(torch.device("cpu"))
        silence = _commonest(torch.cat([call.agent[0] for call in calls[:50]]))
        self.calls = [self._prepared(call, lm, lag, silence, answered) for call in calls]
        self.lengths = torch.tensor([call.taken.shape[2] for call in self.calls])
        self.by_length = self.lengths.argsort()

    def __len__(self) -> int:
        return len(self.calls)

    def _prepared(self, call: CallTokens, lm: LanguageModel, lag: int, silence: int, answered: bool) -> Batch:
        taken = lm.delayed(torch.cat([call.text[None], call.agent, call.caller])[None])
        inputs = torch.cat([self.initial[None, :, None], taken[:, :, :-1]], dim=2)
        loud = (call.agent[0] != silence).float()
        near = torch.nn.functional.max_pool1d(loud[None], 2 * _NEAR_SPEECH + 1, 1, _NEAR_SPEECH)[0] > 0
        there = torch.full((call.frames,), answered)
        there[:lm.config.largest_delay] = False  # delayed codebooks have their initial token
        heard = torch.full_like(call.said, PAD_TOKEN)
        heard[lag:] = call.said[:call.frames - lag]
        return Batch(*(tensor if tensor.dim() == 3 else tensor[None] for tensor in (
            inputs.to(torch.int16), taken.to(torch.int16), call.free & answered,
            call.told & answered & ((call.text == PAD_TOKEN) | (call.text == EPAD_TOKEN)), near & there, ~near & there,
            heard.to(torch.int16), call.intent.to(torch.int16))))

    def draw(self, frames: int, generator: torch.Generator, middle: float = 0.0) -> Batch:
        """Calls of about the same length, together about `frames` frames; a share `middle` of them begins somewhere in
        the middle, as for a model whose memory of the beginning is over."""
        at = int(torch.randint(len(self), (1,), generator=generator))
        length = int(self.lengths[self.by_length[at]])
        count = max(1, round(frames / length))
        first = min(max(0, at - count // 2), max(0, len(self) - count))
        chosen = [self.calls[int(i)] for i in self.by_length[first:first + count]
                  if length / _ALIKE <= self.lengths[i] <= length * _ALIKE]
        if float(torch.rand(1, generator=generator)) < middle:
            chosen = [self._from_middle(call, generator) for call in chosen]
        return _padded(chosen)

    @staticmethod
    def _from_middle(call: Batch, generator: torch.Generator) -> Batch:
        latest = call.taken.shape[2] - SHORTEST
        first = int(torch.randint(max(1, latest), (1,), generator=generator)) if latest > 0 else 0
        return Batch(*(tensor[..., first:] for tensor in call))


def _padded(calls: Sequence[Batch]) -> Batch:
    longest = max(call.taken.shape[2] for call in calls)
    fills = (0, 0, False, False, False, False, PAD_TOKEN, NO_INTENT)
    parts = []
    for tensors, fill in zip(zip(*calls, strict=True), fills, strict=True):
        padded = [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1]), value=fill) for tensor in tensors]
        whole = torch.cat(padded)
        parts.append(whole if whole.dtype == torch.bool else whole.to(torch.int64))
    return Batch(*parts)


def _commonest(tokens: Tensor) -> int:
    return int(tokens.bincount().argmax())
