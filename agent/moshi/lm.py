"""The language model: a temporal transformer over frames, and a depth transformer over one frame's codebooks.

Weights under their official names, and the parallel forward over a whole sequence; `generate.py` steps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.conditions import Conditions
from agent.moshi.config import ZERO_TOKEN, LMConfig
from agent.moshi.layers import RMSNorm, Weight, Weights, linear, windowed_attention
from agent.moshi.quantised import Matrix
from agent.moshi.transformer import Transformer, feed_forward, norm, split_heads


class LMOutput(NamedTuple):
    """What the model predicts for each given token, from all that came before; valid where the masks hold."""

    logits: Tensor  # [B, generated codebooks, T, audio_card]
    mask: Tensor  # [B, generated codebooks, T]
    text_logits: Tensor  # [B, 1, T, text_card_out]
    text_mask: Tensor  # [B, 1, T]


class LanguageModel(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        dim, audio = config.temporal.dim, config.audio_card
        self.emb = Weights(config.audio_streams, audio + 1, dim)
        self.text_emb = Weight(config.text_card + 1, dim)
        self.text_linear = Weight(config.text_card_out, dim)
        self.transformer = Transformer(config.temporal)
        self.out_norm = RMSNorm(dim)
        if config.depth is not None:
            width = config.depth.dim
            self.depformer_in = Weights(config.depth_inputs, width, dim)
            # the last codebook is nobody's input
            self.depformer_emb = Weights(config.generated_codebooks - 1, audio + 1, width)
            self.depformer_text_emb = Weight(config.text_card + 1, width)
            self.depformer = Transformer(config.depth)
            self.linears = Weights(config.generated_codebooks, audio, width)
        self.extra_heads = Weights(config.extra_heads, config.extra_classes, dim)
        if config.conditions:
            self.condition_provider = Conditions(config.conditions, dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.text_emb.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.text_emb.weight.device

    def initial_tokens(self, device: torch.device) -> Tensor:
        """What each stream reads before it has anything: [streams]."""
        config = self.config
        return torch.tensor([config.text_initial_token] + [config.audio_initial_token] * config.audio_streams,
                            device=device)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [..., streams] -> the sum of their embeddings [..., dim]; ZERO_TOKEN adds nothing."""
        there = (tokens != ZERO_TOKEN)[..., None]
        safe = tokens.clamp(min=0)
        parts = [F.embedding(safe[..., k], weight) for k, weight in enumerate(self.input_embeddings())]
        total = parts[0] * there[..., 0, :]
        for k, part in enumerate(parts[1:], 1):
            total = total + part * there[..., k, :]
        condition = self.condition()
        return total if condition is None else total + condition

    def condition(self) -> Tensor | None:
        """What the chosen conditions add to each step's input [dim]; None where the model has none."""
        return self.condition_provider.chosen.to(self.dtype) if self.config.conditions else None

    @torch.no_grad()
    def choose(self, conditions: Mapping[str, str]) -> None:
        """The conditions' values from now on, each its default where none is given. Raises ValueError."""
        unknown = sorted(set(conditions) - {condition.name for condition in self.config.conditions})
        if unknown:
            raise ValueError(f"has no condition {unknown[0]}")
        if self.config.conditions:
            self.condition_provider.choose(conditions)

    def input_embeddings(self) -> list[Tensor]:
        return [self.text_emb.weight, *self.emb.all()]

    def depth_embeddings(self) -> list[Tensor]:
        """Of what each depth step reads: the text, then the codebook before its own."""
        return [self.depformer_text_emb.weight, *self.depformer_emb.all()]

    def depth_input(self, step: int) -> Matrix:
        """The projection of the temporal transformer's output into one depth step [width, dim]."""
        index = self.config.depth_weights[step] if self.config.depth_inputs > 1 else 0
        return self.depformer_in.matrices()[index]

    def forward(self, codes: Tensor) -> LMOutput:
        """Codes [B, streams, T], each stream in its own time -> predictions of each of them."""
        config = self.config
        delayed = self.delayed(codes)
        initial = self.initial_tokens(codes.device)[None, :, None]
        inputs = torch.cat([initial.expand(len(codes), -1, 1), delayed[:, :, :-1]], dim=2)
        x = self.temporal(inputs)
        text_logits, text_mask = self._in_own_time(linear(x, self.text_linear.matrix())[:, None], codes[:, :1], 0)
        logits, mask = self._in_own_time(self.depth(x, delayed),
                                         codes[:, 1:1 + config.generated_codebooks], 1)
        return LMOutput(logits, mask, text_logits, text_mask)

    def delayed(self, codes: Tensor) -> Tensor:
        """Codes [B, streams, T], each stream in its own time -> as steps take them, initial tokens before each."""
        initial = self.initial_tokens(codes.device)[None, :, None]
        delayed = codes.clone()
        for stream, delay in enumerate(self.config.delays):
            shift = min(delay, codes.shape[2])
            delayed[:, stream, :shift] = initial[:, stream]
            delayed[:, stream, shift:] = codes[:, stream, :codes.shape[2] - shift]
        return delayed

    def temporal(self, inputs: Tensor) -> Tensor:
        """The tokens before each step [B, streams, T] -> what the text and the depth transformer read [B, T, dim]."""
        x = self.transformer(self.embed(inputs.transpose(1, 2)))
        return norm(x, self.out_norm.weight(), self.config.temporal)

    def depth(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [B, T, dim], the frames' own tokens [B, streams, T] -> logits [B, generated codebooks, T, card]."""
        config, depth = self.config, self.config.depth
        batch, frames, _ = x.shape
        if depth is None:
            return x.new_zeros(batch, 0, frames, config.audio_card)
        inputs = []
        for k, weight in enumerate(self.depth_embeddings()):
            token = tokens[:, k]
            part = F.embedding(token.clamp(min=0), weight) * (token != ZERO_TOKEN)[..., None]
            inputs.append(linear(x, self.depth_input(k)) + part)
        y = torch.stack(inputs, dim=2).flatten(0, 1)  # [B * T, codebooks, width]
        sets = [self.depformer.weights(weight_set) for weight_set in config.depth_weights]
        for i in range(depth.layers):
            of_step = [weights[i] for weights in sets]
            projected = torch.stack([linear(norm(y[:, k], w.norm1, depth), w.attend_in)
                                     for k, w in enumerate(of_step)], dim=1)
            q, k_, v = (part.transpose(1, 2) for part in split_heads(projected, depth.heads))
            out = windowed_attention(q, k_, v, None).transpose(1, 2).flatten(2)
            y = y + torch.stack([linear(out[:, k], w.attend_out) for k, w in enumerate(of_step)], dim=1)
            y = y + torch.stack([feed_forward(norm(y[:, k], w.norm2, depth), w)
                                 for k, w in enumerate(of_step)], dim=1)
        logits = torch.stack([linear(y[:, k], weight) for k, weight in enumerate(self.linears.matrices())], dim=1)
        return logits.view(batch, frames, *logits.shape[1:]).transpose(1, 2)

    def _in_own_time(self, logits: Tensor, codes: Tensor, first_stream: int) -> tuple[Tensor, Tensor]:
        """Undo the delays: a stream's last predictions, which would lie past the end, are 0 and masked."""
        logits, mask = logits.clone(), codes != ZERO_TOKEN
        frames = codes.shape[2]
        for k in range(logits.shape[1]):
            kept = max(0, frames - self.config.delays[first_stream + k])
            logits[:, k, :kept] = logits[:, k, frames - kept:].clone()
            logits[:, k, kept:] = 0
            mask[:, k, kept:] = False
        return logits, mask
