"""A text-to-speech model's weights under their official names, and its step: a language model that also reads a second
text stream, sums in conditions, and looks at a voice by cross-attention.

    text, codes ─ embed ─▶ temporal transformer (in each layer, after its own past: the voice) ─▶ text's logits
                                     └──────────────── depth transformer ─▶ codes
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.config import ZERO_TOKEN
from agent.moshi.layers import Weight, Weights, linear, rotate, rotations
from agent.moshi.lm import LanguageModel
from agent.moshi.sampling import draw
from agent.moshi.speech_config import SpeechConfig, TableConfig
from agent.moshi.transformer import feed_forward, norm, split_heads

_MAX_PERIOD = 10000.0  # of what is added to a voice
_NORM_EPS = 1e-5


class _TextEmbedding(Weight):
    """Of two tokens at once: the text's, and one of the stream that is ahead, each through a map of its own."""

    def __init__(self, card: int, dim: int, width: int, low_rank: bool) -> None:
        super().__init__(card, dim)
        self.out1, self.out2 = Weight(width, dim), Weight(width, dim)
        if low_rank:
            self.low_rank = Weight(width, dim)  # stands in checkpoints, and nothing reads it

    def both(self, text: Tensor, ahead: Tensor) -> Tensor:
        first = linear(F.embedding(text, self.weight), self.out1.weight)
        second = linear(F.embedding(ahead.clamp(min=0), self.weight), self.out2.weight)
        return first + second * (ahead != ZERO_TOKEN)[:, None]


class _LowRankEmbedding(Weight):
    def __init__(self, card: int, low_rank: int, width: int) -> None:
        super().__init__(card, low_rank)
        self.low_rank = Weight(width, low_rank)


class _CrossAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_projs, self.out_projs = Weights(1, 3 * dim, dim), Weights(1, dim, dim)


class _Condition(nn.Module):
    """What a condition's value, or a voice, becomes; padding where there is none."""

    def __init__(self, dim: int, width: int, table: TableConfig | None) -> None:
        super().__init__()
        self.output_proj = Weight(width, dim)
        self.learnt_padding = nn.Parameter(torch.empty(1, 1, width), requires_grad=False)
        self.table = table
        if table is not None:
            self.embed = Weight(table.bins + 1, dim)

    def of(self, value: str | None) -> Tensor:
        """One of the table's values [width]."""
        assert self.table is not None
        if value is None or value not in self.table.values:
            return self.learnt_padding[0, 0]
        return linear(self.embed.weight[self.table.values.index(value)], self.output_proj.weight)


class _Conditions(nn.Module):
    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width = config.lm.temporal.dim
        conditioners: dict[str, nn.Module] = {table.name: _Condition(table.dim, width, table)
                                              for table in config.tables}
        if config.speaker is not None:
            conditioners[config.speaker] = _Condition(config.speaker_dim, width, None)
        self.conditioners = nn.ModuleDict(conditioners)


class SpeechModel(LanguageModel):
    def __init__(self, config: SpeechConfig) -> None:
        super().__init__(config.lm)
        self.speech = config
        lm, depth = config.lm, config.lm.depth
        assert depth is not None
        if config.words_ahead:
            self.text_emb = _TextEmbedding(lm.text_card + 1, lm.temporal.dim, lm.temporal.dim, False)
            self.depformer_text_emb = _TextEmbedding(
                lm.text_card + 1, config.low_rank or depth.dim, depth.dim, config.low_rank is not None)
        elif config.low_rank is not None:
            self.depformer_text_emb = _LowRankEmbedding(lm.text_card + 1, config.low_rank, depth.dim)
        if config.low_rank is not None:
            self.depformer_emb = nn.ModuleList(  # type: ignore[assignment]
                _LowRankEmbedding(lm.audio_card + 1, config.low_rank, depth.dim)
                for _ in range(lm.generated_codebooks - 1))
        if config.speaker is not None:
            for layer in self.transformer.layers:
                layer.cross_attention = _CrossAttention(lm.temporal.dim)
                layer.norm_cross = Weight(lm.temporal.dim, bias=lm.temporal.dim)
        if config.tables or config.speaker is not None:
            self.condition_provider = _Conditions(config)  # type: ignore[assignment]

    # conditions

    def summed(self, values: Mapping[str, str]) -> Tensor | None:
        """What is added to each step's input [dim]."""
        if not self.speech.tables:
            return None
        return torch.stack([self._condition(table.name).of(values.get(table.name))
                            for table in self.speech.tables]).sum(0)

    def looked_at(self, voice: Tensor, places: int) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [heads, T, head_dim] of a voice [frames, speaker dim], which stands in the first
        of `places` that as many frames have; the others are padding."""
        assert self.speech.speaker is not None
        conditioner = self._condition(self.speech.speaker)
        padding = conditioner.learnt_padding[0].expand((places - 1) * len(voice), -1)
        source = torch.cat([linear(voice, conditioner.output_proj.weight), padding])
        if self.speech.positions_scale:
            source = source + self.speech.positions_scale * _positions(len(source), source.shape[1], source.device)
        source, heads = source.to(self.dtype), self.config.temporal.heads
        found = []
        for i in range(self.config.temporal.layers):
            _, attention = self._cross(i)
            weight = attention.in_projs.all()[0]
            both = linear(source, weight[self.config.temporal.dim:]).unflatten(-1, (2, heads, -1))
            found.append((both[:, 0].transpose(0, 1), both[:, 1].transpose(0, 1)))
        return found

    # a step

    def read(self, text: Tensor, ahead: Tensor, codes: Tensor, summed: Tensor | None) -> Tensor:
        """Tokens [T], [T], [T, codebooks] -> what the temporal transformer reads [T, dim]; ZERO_TOKEN adds nothing."""
        embedding = self.text_emb
        total = None
        for codebook, weight in zip(codes.unbind(1), self.emb.all(), strict=True):
            part = F.embedding(codebook.clamp(min=0), weight) * (codebook != ZERO_TOKEN)[:, None]
            total = part if total is None else total + part
        word = (embedding.both(text, ahead) if isinstance(embedding, _TextEmbedding)
                else F.embedding(text, embedding.weight))
        total = word if total is None else total + word
        return total if summed is None else total + summed.to(total.dtype)

    def temporal_step(self, x: Tensor, memory: Memory, voice: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """The next positions [T, dim] -> what the text and the depth transformer read [T, dim]."""
        config, count = self.config.temporal, len(x)
        assert config.max_period is not None
        positions = torch.arange(memory.length, memory.length + count, device=x.device)
        rotation = rotations(positions, config.dim // config.heads, config.max_period)[:, None]
        for i, layer in enumerate(self.transformer.weights()):
            q, k, v = split_heads(linear(norm(x, layer.norm1, config), layer.attend_in), config.heads)
            out = memory.attend(i, rotate(q, rotation), rotate(k, rotation), v, config.context)
            x = x + linear(out, layer.attend_out)
            if voice is not None:
                x = x + self._look(i, x, *voice[i])
            x = x + feed_forward(norm(x, layer.norm2, config), layer)
        memory.length += count
        return norm(x, self.out_norm.weight(), config)

    def _look(self, i: int, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        config, (scale, attention) = self.config.temporal, self._cross(i)
        normed = F.layer_norm(x, (config.dim,), scale.weight, scale.bias, _NORM_EPS)
        projections = attention.in_projs.all()[0]
        q = linear(normed, projections[:config.dim]).unflatten(-1, (config.heads, -1)).transpose(0, 1)
        out = F.scaled_dot_product_attention(q[None], keys[None], values[None])[0]
        return linear(out.transpose(0, 1).flatten(1), attention.out_projs.all()[0])

    def _condition(self, name: str) -> _Condition:
        found = self.get_submodule(f"condition_provider.conditioners.{name}")
        assert isinstance(found, _Condition)
        return found

    def _cross(self, i: int) -> tuple[Weight, _CrossAttention]:
        layer = self.transformer.layers[i]
        scale, attention = layer.get_submodule("norm_cross"), layer.get_submodule("cross_attention")
        assert isinstance(scale, Weight)
        assert isinstance(attention, _CrossAttention)
        return scale, attention

    def text_logits(self, x: Tensor) -> Tensor:
        return linear(x, self.text_linear.weight).float()

    def take_codes(self, x: Tensor, text: Tensor, ahead: Tensor, codebooks: int, temperature: float, top_k: int,
                   keys: Tensor, tiers: tuple[int, ...]) -> Tensor:
        """One frame's codes [codebooks], from what the temporal transformer gives for it [1, dim]."""
        depth = self.config.depth
        assert depth is not None
        heat, most = torch.full((1,), temperature, device=x.device), torch.full((1,), top_k, device=x.device)
        past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(depth.layers)]
        token, codes = text, []
        for k in range(codebooks):
            y = linear(x, self.depth_input(k)) + self._depth_token(k, token, ahead)
            for i, layer in enumerate(self.depformer.weights(self.config.depth_weights[k])):
                q, key, value = split_heads(linear(norm(y, layer.norm1, depth), layer.attend_in), depth.heads)
                past[i].append((key, value))
                keys_, values = (torch.cat(parts).transpose(0, 1)[None] for parts in zip(*past[i], strict=True))
                out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys_, values)[0]
                y = y + linear(out.transpose(0, 1).flatten(1), layer.attend_out)
                y = y + feed_forward(norm(y, layer.norm2, depth), layer)
            token = draw(linear(y, self.linears.all()[k]).float(), heat, most, keys[:, k], tiers)
            codes.append(token)
        return torch.cat(codes)

    def _depth_token(self, k: int, token: Tensor, ahead: Tensor) -> Tensor:
        embedding = self.depformer_text_emb if k == 0 else self.depformer_emb[k - 1]
        if isinstance(embedding, _TextEmbedding):
            return embedding.both(token, ahead)
        assert isinstance(embedding, Weight)
        row = F.embedding(token, embedding.weight)
        return linear(row, embedding.low_rank.weight) if isinstance(embedding, _LowRankEmbedding) else row


class Memory:
    """Keys and values of one speech, from its beginning on; as many positions as there is room for."""

    def __init__(self, model: SpeechModel, positions: int) -> None:
        config = model.config.temporal
        shape = (2, config.heads, positions, config.dim // config.heads)
        self._layers = [torch.zeros(shape, device=model.device, dtype=model.dtype) for _ in range(config.layers)]
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: int | None) -> Tensor:
        """q, k, v [T, heads, head_dim] of the next T positions, each of which sees the last `context`, itself included.
        Returns [T, heads * head_dim]."""
        count, end = len(q), self.length + len(q)
        kept = self._layers[layer]
        kept[0, :, self.length:end], kept[1, :, self.length:end] = k.transpose(0, 1), v.transpose(0, 1)
        first = 0 if context is None else max(0, self.length + 1 - context)
        mask = None
        if count > 1:
            age = torch.arange(self.length, end, device=q.device)[:, None] - torch.arange(first, end, device=q.device)
            mask = (age >= 0) & (age < (context or math.inf))
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], kept[None, 0, :, first:end], kept[None, 1, :, first:end], attn_mask=mask)
        return out[0].transpose(0, 1).flatten(1)


def _positions(count: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines that tell positions apart [count, dim] (Vaswani et al. 2017, as Kyutai's code has it)."""
    half = torch.arange(dim // 2, device=device, dtype=torch.float32)
    period = torch.full([], _MAX_PERIOD, device=device) ** (half / (dim // 2 - 1))
    phase = torch.arange(count, device=device, dtype=torch.float32)[:, None] / period
    return torch.cat([phase.cos(), phase.sin()], dim=1)
