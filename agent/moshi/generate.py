"""One step of the language model for B slots: what they heard in, the next text token and codes out.

A step at a slot's position p (its count of steps so far) writes the caller's codes at p + delay into the slot's ring
of tokens, reads position p (streams whose delay isn't over read their initial token), and writes what it takes at
p + 1. So text and the codebook without delay of frame n are taken one step before its delayed codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, UNGENERATED
from agent.moshi.kv import PLAIN, KVSettings, SlotRows
from agent.moshi.layers import Rows, linear
from agent.moshi.lm import LanguageModel
from agent.moshi.quantised import Matrix
from agent.moshi.sampling import draw, draw_keys
from agent.moshi.transformer import LayerWeights, feed_forward, norm

FREE, TOLD, WORD_ONLY = 0, 1, 2  # text modes, see agent.step.TextMode

SIGNS_WINDOW = 64  # frames that the signs of a healthy conversation look at (paper, appendix D)


@dataclass(frozen=True)
class Controls:
    """How each row's tokens are taken, on the device; and what the host knows of them, to leave out work."""

    text_mode: Tensor  # [B] int64
    forced_text: Tensor  # [B] int64, -1 where free
    forced_audio: Tensor  # [B, generated codebooks] int64, -1 where free
    seed: Tensor  # [B] int64
    text_top_k: Tensor  # [B] int64, 0: all
    audio_top_k: Tensor  # [B] int64, 0: all
    text_temperature: Tensor  # [B] float32, 0: the greatest
    audio_temperature: Tensor  # [B] float32, 0: the greatest
    pad_bias: Tensor  # [B] float32, added to PAD's logit
    repetition_penalty: Tensor  # [B] float32, 1: none
    text_tiers: Sequence[int]  # of the rows that draw, see sampling.draw; empty: all are greedy
    audio_tiers: Sequence[int]
    barred: bool  # some row's mode is not FREE
    penalised: bool  # some row has a repetition penalty

    @classmethod
    def greedy(cls, rows: int, generated_codebooks: int, device: torch.device, forced_text: Tensor | None = None,
               forced_audio: Tensor | None = None) -> Controls:
        """The greatest of everything, in no mode."""
        zero, none = torch.zeros(rows, dtype=torch.int64, device=device), torch.zeros(rows, device=device)
        free = torch.full((rows, 1 + generated_codebooks), -1, device=device)
        return cls(
            text_mode=zero, forced_text=free[:, 0] if forced_text is None else forced_text,
            forced_audio=free[:, 1:] if forced_audio is None else forced_audio, seed=zero, text_top_k=zero,
            audio_top_k=zero, text_temperature=none, audio_temperature=none, pad_bias=none,
            repetition_penalty=none + 1, text_tiers=(), audio_tiers=(), barred=False, penalised=False)


class Generated(NamedTuple):
    text: Tensor  # [B]: taken
    sampled_text: Tensor  # [B]: what the model would have taken, in no mode and with nothing forced
    codes: Tensor  # [B, generated codebooks]: taken in this step; -1 where the caller's codes will stand
    aligned: Tensor  # [B, 1 + agent codebooks]: the frame that this step completed; UNGENERATED before the first
    pauses: Tensor  # [B, heads, classes] float32
    text_entropy: Tensor  # [B] float32, nats, of the last SIGNS_WINDOW text tokens
    audio_entropy: Tensor  # [B] float32, the same of the agent's codebooks: their median
    codebook_spread: Tensor  # [B] float32: the deviation between the entropies of the agent's codebooks


class History(NamedTuple):
    """What T steps of one slot took and heard, each in the order of its steps."""

    text: Tensor  # [T]
    agent: Tensor  # [agent codebooks, T]
    caller: Tensor  # [caller codebooks, T]

    def __len__(self) -> int:
        return self.text.shape[0]

    def then(self, later: History) -> History:
        return History(torch.cat([self.text, later.text]), torch.cat([self.agent, later.agent], dim=1),
                       torch.cat([self.caller, later.caller], dim=1))


class Prefilled(NamedTuple):
    """What steps that one slot took leave behind, to be put into any."""

    history: History
    keys_values: list[tuple[Tensor, Tensor]]  # of each layer, [T, heads, head_dim]


class GeneratorState:
    """What the language model remembers of each slot; the last slot is scratch."""

    def __init__(self, model: LanguageModel, slots: int, largest_bucket: int, kv: KVSettings = PLAIN) -> None:
        config, device = model.config, model.device
        # as much of each stream as the delays ask for [slots + 1, streams, ring]
        self.tokens = torch.full((slots + 1, config.streams, config.largest_delay + 2), UNGENERATED, device=device)
        self.recent = torch.zeros(slots + 1, 1 + config.agent_codebooks, SIGNS_WINDOW, dtype=torch.int64,
                                  device=device)
        self.ring = model.transformer.ring(slots, 1, device, model.dtype, kv)
        # the depth transformer starts anew in every step; this is its room to work, nobody's state
        self.depth_room: Tensor | None = None
        if config.depth is not None:
            depth = config.depth
            self.depth_room = torch.zeros(depth.layers, 2, largest_bucket, depth.heads, config.agent_codebooks,
                                          depth.dim // depth.heads, device=device, dtype=model.dtype)

    def rows(self) -> dict[str, SlotRows]:
        """Everything there is of a slot, as rows of these tensors' first dimension."""
        pages = {f"ring.{name}": pages for name, pages in self.ring.rows().items()}
        return {"tokens": self.tokens, "recent": self.recent, **pages}


class Generator:
    """The language model's weights, gathered for stepping. It has no state of its own."""

    def __init__(self, model: LanguageModel) -> None:
        config, device = model.config, model.device
        self.model, self.config = model, config
        self._initial = model.initial_tokens(device)
        self._delays = torch.tensor(config.delays, device=device)
        self._out_norm = model.out_norm.weight()
        self._embeddings = model.input_embeddings()
        self._heads = model.extra_heads.matrices()
        self._text_out = model.text_linear.matrix()
        self._condition = model.condition()
        self._wordless = torch.zeros(config.text_card_out, dtype=torch.bool, device=device)
        self._wordless[[EPAD_TOKEN, PAD_TOKEN]] = True
        # steps past the agent's own codebooks predict the caller, whom we hear: they are left out
        self._depth_steps = [self._depth_step(k) for k in range(config.agent_codebooks if config.depth else 0)]

    def _depth_step(self, k: int) -> _DepthStep:
        model = self.model
        weights = model.depformer.weights(self.config.depth_weights[k])
        return _DepthStep(model.depth_input(k), model.depth_embeddings()[k], weights, model.linears.matrices()[k])

    def step(self, caller_codes: Tensor, controls: Controls, state: GeneratorState, rows: Rows) -> Generated:
        """The rows' next step, from the caller's codes [B, caller codebooks]. Changes the rows' state."""
        config, agent = self.config, self.config.agent_codebooks
        position = rows.positions
        ring = state.tokens.index_select(0, rows.slots)  # [B, streams, length]
        length = ring.shape[2]
        if config.caller_codebooks:
            arrive = (position[:, None] + self._delays[1 + agent:]) % length
            ring[:, 1 + agent:].scatter_(2, arrive[:, :, None], caller_codes[:, :, None])
        now = (position % length)[:, None, None].expand(-1, config.streams, 1)
        waits = position[:, None] <= self._delays
        tokens = torch.where(waits, self._initial, ring.gather(2, now)[:, :, 0])

        x = self._embed(tokens)
        x = self.model.transformer.step(x[:, None], state.ring, rows)
        x = norm(x[:, 0], self._out_norm, config.temporal)
        recent = state.recent.index_select(0, rows.slots)
        keys = draw_keys(controls.seed, position, 1 + agent)
        text, sampled_text = self._take_text(x, keys[:, 0], recent[:, 0], controls, position)
        codes = self._take_codes(x, text, keys, controls, state)

        taken = torch.cat([text[:, None], codes], dim=1)[:, :, None]
        ring[:, :1 + agent].scatter_(2, ((position + 1) % length)[:, None, None].expand_as(taken), taken)
        complete = (position[:, None] + 1 - config.largest_delay + self._delays[:1 + agent]) % length
        aligned = ring[:, :1 + agent].gather(2, complete[:, :, None])[:, :, 0]
        aligned = aligned.masked_fill_((position < config.largest_delay)[:, None], UNGENERATED)
        recent.scatter_(2, (position % SIGNS_WINDOW)[:, None, None].expand_as(taken), taken)
        state.tokens.index_copy_(0, rows.slots, ring)
        state.recent.index_copy_(0, rows.slots, recent)

        entropy = _entropies(recent, position + 1)
        silent = torch.zeros_like(entropy[:, 0])
        middle = entropy[:, 1:].median(dim=1).values if agent else silent
        spread = entropy[:, 1:].std(dim=1, correction=0) if agent else silent
        if config.generated_codebooks > agent:
            codes = F.pad(codes, (0, config.generated_codebooks - agent), value=-1)
        return Generated(text, sampled_text, codes, aligned, self._pauses(x), entropy[:, 0], middle, spread)

    def rebuild(self, history: History, state: GeneratorState, slot: int, embeddings: Tensor | None = None) -> None:
        """Bring a slot to where it would be after these steps, in one pass; positions count from the first. The first
        of them read `embeddings` [n, dim], where these are given, in place of their tokens."""
        self.model.transformer.prefill(self._read(history, embeddings), state.ring, slot)
        self._remember(history, state, slot)

    def prefill(self, history: History, embeddings: Tensor | None = None) -> Prefilled:
        """As `rebuild`, to be `put` into slots."""
        return Prefilled(history, self.model.transformer.keys_values(self._read(history, embeddings)))

    def put(self, prefilled: Prefilled, state: GeneratorState, slot: int) -> None:
        """Bring a slot to where it would be after these steps."""
        for layer, (keys, values) in enumerate(prefilled.keys_values):
            state.ring.fill(layer, slot, keys, values)
        self._remember(prefilled.history, state, slot)

    def _read(self, history: History, embeddings: Tensor | None) -> Tensor:
        """What the temporal transformer reads in each of these steps [T, dim]."""
        config, agent, count = self.config, self.config.agent_codebooks, len(history)
        taken = torch.cat([history.text[None], history.agent])  # [1 + agent codebooks, T]
        delays = config.delays[1 + agent:]
        inputs = self._initial[:, None].repeat(1, count)
        inputs[:1 + agent, 1:] = taken[:, :-1]
        for codes, stream, delay in zip(history.caller, inputs[1 + agent:], delays, strict=True):
            stream[delay:] = codes[:max(0, count - delay)]
        steps = torch.arange(count, device=inputs.device)
        inputs = torch.where(steps <= self._delays[:, None], self._initial[:, None], inputs)
        read = self.model.embed(inputs.T)
        return read if embeddings is None else torch.cat([embeddings, read[len(embeddings):]])

    def _remember(self, history: History, state: GeneratorState, slot: int) -> None:
        """The tokens that the next steps look back at."""
        config, agent, count = self.config, self.config.agent_codebooks, len(history)
        length, delays = state.tokens.shape[2], config.delays[1 + agent:]
        taken = torch.cat([history.text[None], history.agent])
        ring, recent = state.tokens[slot], state.recent[slot]
        ring.fill_(UNGENERATED)
        for step in range(max(0, count - length), count):  # the latest last: a ring's places are used again
            ring[:1 + agent, (step + 1) % length] = taken[:, step]
            for stream, codes, delay in zip(ring[1 + agent:], history.caller, delays, strict=True):
                stream[(step + delay) % length] = codes[step]
        kept = torch.arange(max(0, count - SIGNS_WINDOW), count, device=recent.device)
        recent[:, kept % SIGNS_WINDOW] = taken[:, kept]

    def aligned(self, history: History, last: int) -> Tensor:
        """The agent's frames that the last `last` steps completed, as in Generated: codes [n, agent codebooks]."""
        agent, largest = self.config.agent_codebooks, self.config.largest_delay
        steps = torch.arange(max(largest, len(history) - last), len(history), device=history.text.device)
        frames = [codes[steps - largest + delay]
                  for codes, delay in zip(history.agent, self.config.delays[1:1 + agent], strict=True)]
        return torch.stack(frames, dim=1) if frames else steps.new_zeros(len(steps), 0)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, streams] -> [B, dim]. As LanguageModel.embed, for tokens that are all there."""
        parts = iter(zip(self._embeddings, tokens.unbind(1), strict=True))
        weight, token = next(parts)
        total = F.embedding(token, weight)
        for weight, token in parts:
            total += F.embedding(token, weight)
        return total if self._condition is None else total + self._condition

    def _take_text(self, x: Tensor, key: Tensor, recent: Tensor, controls: Controls, position: Tensor
                   ) -> tuple[Tensor, Tensor]:
        logits = linear(x, self._text_out).float()
        if controls.penalised:
            logits = _penalise(logits, recent, position, controls.repetition_penalty)
        logits[:, PAD_TOKEN] += controls.pad_bias

        def drawn(allowed: Tensor) -> Tensor:
            return draw(allowed, controls.text_temperature, controls.text_top_k, key, controls.text_tiers)

        sampled = taken = drawn(logits)
        forced = controls.forced_text >= 0
        if controls.barred:
            words_only = (controls.text_mode == WORD_ONLY)[:, None]
            taken = drawn(logits.masked_fill(words_only & self._wordless, -torch.inf))
            forced = forced & ~((controls.text_mode == TOLD) & self._wordless[taken])
        return torch.where(forced, controls.forced_text, taken), sampled

    def _take_codes(self, x: Tensor, text: Tensor, keys: Tensor, controls: Controls, state: GeneratorState) -> Tensor:
        """The depth transformer's chain: each codebook sees the frame and the tokens before it."""
        depth, room = self.config.depth, state.depth_room
        if depth is None or room is None:
            return text.new_zeros(len(text), 0)
        room = room[:, :, :len(text)]
        token, codes = text, []
        for k, step in enumerate(self._depth_steps):
            y = linear(x, step.input) + F.embedding(token, step.embedding)  # [B, width]
            for i, layer in enumerate(step.layers):
                projected = linear(norm(y, layer.norm1, depth), layer.attend_in).unflatten(1, (3, depth.heads, 1, -1))
                keys_values = room[i]
                keys_values[:, :, :, k] = projected[:, 1:, :, 0].transpose(0, 1)
                out = F.scaled_dot_product_attention(projected[:, 0], keys_values[0, :, :, :k + 1],
                                                     keys_values[1, :, :, :k + 1])
                y = y + linear(out.flatten(1), layer.attend_out)
                y = y + feed_forward(norm(y, layer.norm2, depth), layer)
            drawn = draw(linear(y, step.output).float(), controls.audio_temperature, controls.audio_top_k,
                         keys[:, 1 + k], controls.audio_tiers)
            forced = controls.forced_audio[:, k]
            token = torch.where(forced >= 0, forced, drawn)
            codes.append(token)
        return torch.stack(codes, dim=1)

    def _pauses(self, x: Tensor) -> Tensor:
        if not self._heads:
            return x.new_zeros(len(x), 0, self.config.extra_classes, dtype=torch.float32)
        return torch.stack([linear(x, head).float().softmax(dim=-1) for head in self._heads], dim=1)


class _DepthStep(NamedTuple):
    """The weights of one depth step."""

    input: Matrix  # [width, dim]
    embedding: Tensor  # of the token before
    layers: list[LayerWeights]
    output: Matrix  # [card, width]


def _penalise(logits: Tensor, recent: Tensor, position: Tensor, penalty: Tensor) -> Tensor:
    """Make the pieces of the last SIGNS_WINDOW steps less likely: logits above 0 divided, below 0 multiplied.

    PAD and EPAD are spared; what an earlier call left in `recent` counts as PAD.
    """
    written = torch.arange(recent.shape[1], device=recent.device) < position[:, None]
    spared = ~written | (recent == PAD_TOKEN) | (recent == EPAD_TOKEN)
    tokens = torch.where(spared, PAD_TOKEN, recent)
    now = logits.gather(1, tokens)
    less = torch.where(now >= 0, now / penalty[:, None], now * penalty[:, None])
    return logits.scatter(1, tokens, torch.where(spared, now, less))


def _entropies(recent: Tensor, steps: Tensor) -> Tensor:
    """Entropy in nats of each stream's last tokens: recent [B, streams, window], steps [B] -> [B, streams]."""
    window = recent.shape[2]
    written = torch.arange(window, device=recent.device) < steps[:, None]  # [B, window]
    same = (recent[:, :, :, None] == recent[:, :, None, :]) & written[:, None, None, :]
    logs = same.sum(dim=3).clamp_(min=1).float().log_().masked_fill_(~written[:, None, :], 0)
    count = steps.clamp(max=window).float()[:, None]
    return count.log() - logs.sum(dim=2) / count
