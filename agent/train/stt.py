"""Trains speech-to-text: the caller's codes to the caller's words, half a second late, and to how long pauses last.

The model is the agent's without a depth transformer, in the layout of Kyutai's (Delayed Streams Modeling, Zeghidour
et al. 2025), so that the ordinary code loads and streams it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, ZERO_TOKEN, LMConfig
from agent.moshi.layers import linear
from agent.moshi.lm import LanguageModel
from agent.moshi.text import Tokenizer
from agent.moshi.transcribe import PAUSES_S, CallerWords, Transcriber, lag_of, transcribe
from agent.train.codec import CONFIG as MIMI_CONFIG
from agent.train.codec import WEIGHTS as MIMI_WEIGHTS
from agent.train.codec import load_codec
from agent.train.domain.reader import load
from agent.train.initial import HeardTwice, go_on_from, hear_anew, hear_likeness, initialise
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME
from agent.train.precision import mixed
from agent.train.stt_data import UNKNOWN, CallerSides, Windows
from agent.train.tokens import NO_INTENT, NO_PHONE, CallTokens, Tokens
from agent.train.trainer import Task, Team, TrainingError
from agent.train.words import WordErrors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MEANT = "meant.safetensors"  # the head that tells what the caller meant; no part of the model

_PAUSE_CLASSES = 6  # as in the published heads, which use the first; ours use the first two
_HELD_OUT_WINDOWS = 16


@dataclass(frozen=True)
class SttSpec:
    """`calls` and `held_out` are encoded calls (tokens.py). The batch is divided among the processes."""

    calls: tuple[Path, ...]
    held_out: Path
    codec: Path  # the folder of the Mimi that encoded them: what is trained names its files, and has no copy
    tokenizer: Path  # the text's SentencePiece model, likewise
    dim: int = 256
    layers: int = 4
    heads: int = 8
    context: int = 250  # frames: 20 s are enough for words
    delay_s: float = 0.5  # of the text
    acoustic_delay: int = 0  # frames, of all codebooks but the first; 1 where it shall hear as a language model
    batch: int = 8
    frames: int = 256  # of a window
    pad_share: float = 0.3  # of the text's padding, that is asked for in a step
    pauses: float = 0.2  # of the loss
    phones: float = 0.5  # of the loss: a head of training alone that tells what is heard just now
    meant: float = 0.3  # of the loss: a head that tells what the caller meant, for a language model to begin with
    first_dropout: float = 0.05  # of the first codebook's input codes, replaced by any
    rest_dropout: float = 0.12
    text_dropout: float = 0.1  # of the input text, left out: what is heard is to count more than what is often said
    reads_text: bool = True  # that it wrote; False where it shall hear as a language model, whose text is the agent's
    transcribed_calls: int = 8  # of the held-out ones, while training
    of: Path | None = None  # the folder of a trained model to go on from
    heard_before: Path | None = None  # some of the last of `calls` by the ears that it heard by, where these are others


def make_task(team: Team, spec: SttSpec) -> Task:
    return _SttTask(team, spec)


class _SttTask:
    def __init__(self, team: Team, spec: SttSpec) -> None:
        self.team, self.spec = team, spec
        codec, self.tokenizer = load_codec(spec.codec), Tokenizer(spec.tokenizer)
        self.mimi = codec.config
        self.lag = lag_of(spec.delay_s, self.mimi.frame_rate)
        calls = [call for path in spec.calls for call in self._read(path)]
        self.config = stt_config(spec, codebooks=len(calls[0].caller), codebook_size=self.mimi.codebook_size,
                                 text_card=len(self.tokenizer))
        self.lm = LanguageModel(LMConfig.from_dict(self.config))
        generator = torch.Generator().manual_seed(0)
        initialise(self.lm, generator)
        hear_likeness(self.lm, codec, generator)
        if spec.of is not None and spec.heard_before is not None:
            before = go_on_from(spec.of / WEIGHTS, self.lm, agent_codebooks=0)
            hear_anew(self.lm, before, codec, HeardTwice.of(spec.heard_before, spec.calls[-1]))
        elif spec.of is not None:
            go_on_from(spec.of / WEIGHTS, self.lm)
        self.phones = nn.Linear(spec.dim, LABELS_PER_FRAME * LABELS)
        self.meant = nn.Linear(spec.dim, len(load().intents))
        self.module: nn.Module = nn.ModuleDict(
            {"lm": self.lm, "phones": self.phones, "meant": self.meant}).to(team.device)
        self.lm.requires_grad_(True)
        initial, delays = self.lm.initial_tokens(torch.device("cpu")), self.lm.config.delays[1:]
        self.calls = CallerSides.of(calls, self.lag, self.mimi.frame_rate, initial, delays)
        if team.rank == 0:
            held_out = self._read(spec.held_out)
            self.held_out = CallerSides.of(held_out, self.lag, self.mimi.frame_rate, initial, delays)
            self.transcribed = held_out[:spec.transcribed_calls]
        dropout = [spec.text_dropout, spec.first_dropout] + [spec.rest_dropout] * (len(initial) - 2)
        self.dropout = torch.tensor(dropout)[:, None]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        windows = self.calls.draw(max(1, self.spec.batch // self.team.size), self.spec.frames, generator)
        windows = windows._replace(inputs=self._corrupted(windows.inputs, generator))
        with mixed(self.team.device):
            return self._losses(windows, generator)

    def evaluate(self) -> Mapping[str, float]:
        generator = torch.Generator().manual_seed(1)
        figures = self._losses(self.held_out.draw(_HELD_OUT_WINDOWS, self.spec.frames, generator), generator)[1]
        return {**figures, "word_errors": self.word_errors().rate} if self.spec.reads_text else figures

    def word_errors(self) -> WordErrors:
        """Of the first held-out calls, streamed and greedy."""
        calls = self.transcribed
        heard = transcribe(Transcriber(self.lm, len(calls)), self.tokenizer, self.lag, [call.caller for call in calls])
        return sum((WordErrors.of(said_in(call, self.tokenizer), " ".join(word.text for word in words))
                    for call, words in zip(calls, heard, strict=True)), WordErrors())

    def export(self, folder: Path) -> None:
        files = {"mimi_name": self.spec.codec / MIMI_WEIGHTS, "mimi_config_name": self.spec.codec / MIMI_CONFIG,
                 "tokenizer_name": self.spec.tokenizer}
        named = {key: os.path.relpath(path, folder) for key, path in files.items()}
        (folder / CONFIG).write_text(json.dumps(self.config | named, indent=2) + "\n")
        save_file({name: tensor.detach().to(torch.bfloat16).contiguous().cpu()
                   for name, tensor in self.lm.state_dict().items()}, folder / WEIGHTS)
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in self.meant.state_dict().items()},
                  folder / MEANT)

    def _read(self, path: Path) -> list[CallTokens]:
        """All calls of a file. Raises TrainingError if another codec or another tokenizer made it."""
        tokens = Tokens.open(path)
        calls = [tokens[i] for i in range(len(tokens))]
        if not calls:
            raise TrainingError(f"{path}: holds no calls")
        for call in calls:
            if int(call.caller.max()) >= self.mimi.codebook_size:
                raise TrainingError(f"{path}: {call.name} has codes that the Mimi in {self.spec.codec} doesn't know")
            if int(call.said.max()) >= len(self.tokenizer):
                raise TrainingError(f"{path}: {call.name} has text that {self.spec.tokenizer} doesn't know")
        return calls

    def _corrupted(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Some codes replaced by any, some of the text left out."""
        dropped = torch.rand(inputs.shape, generator=generator) < self.dropout
        any_code = torch.randint(self.lm.config.audio_card, inputs.shape, generator=generator)
        any_code[:, 0] = ZERO_TOKEN
        return torch.where(dropped, any_code, inputs)

    def _losses(self, windows: Windows, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        inputs, text, pauses, phones, intent = (part.to(self.team.device) for part in windows)
        if not self.spec.reads_text:
            inputs[:, 0] = ZERO_TOKEN
        x = self.lm.temporal(inputs)
        drawn = torch.rand(text.shape, generator=generator).to(x.device)
        asked = (text != PAD_TOKEN) | (drawn < self.spec.pad_share)
        text, text_logits = text[asked], linear(x[asked], self.lm.text_linear.weight).float()
        text_loss = F.cross_entropy(text_logits, text)
        pause_logits = _pause_logits(self.lm, x)
        known = pauses != UNKNOWN
        pause_losses = F.cross_entropy(pause_logits.float()[known], pauses[known], reduction="sum")
        pause_loss = pause_losses / known.sum().clamp(min=1)
        right = text_logits.argmax(-1) == text
        pieces = (text != PAD_TOKEN) & (text != EPAD_TOKEN)
        figures = {"text": text_loss, "pause": pause_loss, "pieces": right[pieces].float().mean(),
                   "pads": right[text == PAD_TOKEN].float().mean()}
        phone_logits = self.phones(x).float().unflatten(-1, (LABELS_PER_FRAME, LABELS))
        heard = phones != NO_PHONE
        phone_losses = F.cross_entropy(phone_logits[heard], phones[heard], reduction="sum")
        phone_loss = phone_losses / heard.sum().clamp(min=1)
        figures["phones"] = (phone_logits.argmax(-1) == phones)[phones > 0].float().mean()
        told = intent != NO_INTENT
        meant_logits = self.meant(x[told]).float()
        meant_losses = F.cross_entropy(meant_logits, intent[told], reduction="sum")
        meant_loss = meant_losses / told.sum().clamp(min=1)
        figures["meant"] = (meant_logits.argmax(-1) == intent[told]).float().mean()
        total = text_loss + self.spec.pauses * pause_loss + self.spec.phones * phone_loss + self.spec.meant * meant_loss
        return total, {name: value.item() for name, value in figures.items()}


def _pause_logits(lm: LanguageModel, x: Tensor) -> Tensor:
    """What the extra heads make of the temporal transformer's output [B, T, dim]: logits [B, T, heads, classes]."""
    return torch.stack([linear(x, head) for head in lm.extra_heads.all()], dim=2)


def said_in(call: CallTokens, tokenizer: Tokenizer) -> str:
    """What the caller says in a call, from its text tokens."""
    words = CallerWords(tokenizer, 0)
    finished = [words.feed(k, token) for k, token in enumerate(call.said.tolist())]
    return " ".join(word.text for word in (*finished, words.end()) if word is not None)


def stt_config(spec: SttSpec, *, codebooks: int, codebook_size: int, text_card: int) -> dict[str, Any]:
    """The config.json of a speech-to-text model, without its files' names."""
    return {
        "dim": spec.dim, "text_card": text_card, "existing_text_padding_id": PAD_TOKEN, "n_q": codebooks, "dep_q": 0,
        "card": codebook_size, "num_heads": spec.heads, "num_layers": spec.layers, "hidden_scale": 4.125,
        "causal": True, "layer_scale": None, "context": spec.context, "max_period": 10000, "gating": "silu",
        "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_multi_linear": True,
        "delays": [0, 0] + [spec.acoustic_delay] * (codebooks - 1),
        "extra_heads_num_heads": len(PAUSES_S), "extra_heads_dim": _PAUSE_CLASSES,
        "model_type": "stt",
        "stt_config": {"audio_delay_seconds": spec.delay_s, "audio_silence_prefix_seconds": 0.0},
        "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
        "moshi_name": WEIGHTS,
    }


__all__ = ["CONFIG", "MEANT", "WEIGHTS", "SttSpec", "make_task", "said_in", "stt_config"]
