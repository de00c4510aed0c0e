"""Trains the language model: two streams of sound and the inner monologue (Moshi, 3.4), on whole calls.

Beside the model's own losses, two heads that exist in training alone ask the temporal transformer what the caller said
and what they meant: a model this small and with this few calls finds that out sooner if it is told.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, ZERO_TOKEN, LMConfig
from agent.moshi.layers import linear
from agent.moshi.lm import LanguageModel
from agent.train import stt
from agent.train.codec import load_codec
from agent.train.domain.reader import load
from agent.train.initial import HeardTwice, go_on_from, hear_anew, initialise
from agent.train.lm_data import Batch, Calls
from agent.train.precision import mixed
from agent.train.tokens import NO_INTENT, Tokens
from agent.train.trainer import Task, Team, TrainingError

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_HELD_OUT_BATCHES = 12
_KEPT_SAYINGS = 12
_OF_TOLD = frozenset({"pace", "sound", "first_codes", "second_codes", "last_codes"})
_GAP = 4  # frames
_OWN_VOICE = 0.25  # of their scale: its own codes and words, where it begins with ears


@dataclass(frozen=True)
class LMSpec:
    """`config` is a config.json. Frames are divided among the processes."""

    config: Mapping[str, Any]
    calls: Path  # of tokens.py
    held_out: Path
    callers: Path | None = None  # calls in which nobody answers: what was said and meant is asked, nothing else
    callers_share: float = 0.45  # of the batches are those
    sayings: Path | None = None  # calls in which the agent says what it is told; a few of them are kept to judge by
    sayings_share: float = 0.2  # of the batches
    frames: int = 3072  # of a step
    middle: float = 0.15  # of the batches begin in the middle of calls
    pad_share: float = 0.3  # of the text's padding, that is asked for in a step
    first_codebook: float = 3.0  # against each of the others
    spoken_share: float = 0.5  # of the frames with speech, whose codes are asked for in a step
    quiet_share: float = 0.06
    agent_noise: float = 0.05  # of the input's codes, replaced by any
    first_noise: float = 0.05  # of the caller's first codebook
    rest_noise: float = 0.05
    gaps: float = 0.06  # of the frames of calls, in which the caller isn't heard, in runs of a few
    callers_gaps: float = 0.18  # the same where nobody answers: what was meant shall be told by any of the words
    heard: float = 0.5  # of the loss: what the caller said
    heard_pad_share: float = 0.1  # of the padding between the caller's words
    meant: float = 0.5
    lag: int = 6  # frames from a word's begin until it must be understood
    ears: Path | None = None  # the folder of a hearing training (stt.py, nano.py), whose layers it begins with
    of: Path | None = None  # the folder of a trained language model to go on from
    new_ears: Path | None = None  # the folder of another Mimi than the one that it has heard by so far
    heard_before: Path | None = None  # some of `callers` (or else of `calls`) by that one, of tokens.py


def make_task(team: Team, spec: LMSpec) -> Task:
    return _LMTask(team, spec)


class _LMTask:
    def __init__(self, team: Team, spec: LMSpec) -> None:
        self.team, self.spec = team, spec
        self.lm = LanguageModel(LMConfig.from_dict(spec.config))
        initialise(self.lm, torch.Generator().manual_seed(0))
        config = self.lm.config
        self.heard = nn.Linear(config.temporal.dim, config.text_card_out)
        self.meant = nn.Linear(config.temporal.dim, len(load().intents))
        self.module = nn.ModuleDict({"lm": self.lm, "heard": self.heard, "meant": self.meant}).to(team.device)
        if spec.ears is not None:
            lend_ears(spec.ears, self.lm, self.heard, self.meant)
        if spec.new_ears is not None:
            if spec.of is None or spec.heard_before is None:
                raise TrainingError("new ears are for a model to go on from, and for what it has heard by others")
            before = go_on_from(spec.of / WEIGHTS, self.lm, agent_codebooks=config.agent_codebooks)
            hear_anew(self.lm, before, load_codec(spec.new_ears),
                      HeardTwice.of(spec.heard_before, spec.callers or spec.calls))
        elif spec.of is not None:
            go_on_from(spec.of / WEIGHTS, self.lm)
        self.lm.requires_grad_(True)
        self.calls = _calls(spec.calls, self.lm, spec.lag)
        self.callers = _calls(spec.callers, self.lm, spec.lag, answered=False) if spec.callers else None
        # by what their figures' names begin with
        self.held_out = {"": _calls(spec.held_out, self.lm, spec.lag)} if team.rank == 0 else {}
        self.sayings = None
        if spec.sayings is not None:
            sayings = Tokens.open(spec.sayings)
            kept = min(_KEPT_SAYINGS, len(sayings) // 2)
            self.sayings = Calls([sayings[i] for i in range(kept, len(sayings))], self.lm, spec.lag)
            if team.rank == 0 and kept:
                self.held_out["told_"] = Calls([sayings[i] for i in range(kept)], self.lm, spec.lag)
        noise = [0.0] + [spec.agent_noise] * config.agent_codebooks
        noise += [spec.first_noise] + [spec.rest_noise] * (config.caller_codebooks - 1)
        self.noise = torch.tensor(noise)[:, None]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        calls, gaps, drawn = self.calls, spec.gaps, float(torch.rand(1, generator=generator))
        if self.callers is not None and drawn < spec.callers_share:
            calls, gaps = self.callers, spec.callers_gaps
        elif self.sayings is not None and drawn > 1 - spec.sayings_share:
            calls = self.sayings
        batch = calls.draw(spec.frames // self.team.size, generator, spec.middle)
        noisy = torch.rand(batch.inputs.shape, generator=generator) < self.noise
        any_code = torch.randint(self.lm.config.audio_card, batch.inputs.shape, generator=generator)
        inputs = torch.where(noisy, any_code, batch.inputs)
        inputs[:, 1 + self.lm.config.agent_codebooks:].masked_fill_(_gaps(inputs, gaps, generator), ZERO_TOKEN)
        batch = batch._replace(inputs=inputs)
        asked = torch.rand(batch.sounds.shape, generator=generator)
        sounds = (batch.sounds & (asked < spec.spoken_share)) | (batch.quiet & (asked < spec.quiet_share))
        with mixed(self.team.device):
            return self._losses(batch.to(self.team.device), sounds.to(self.team.device), generator)

    def evaluate(self) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for of, calls in self.held_out.items():
            generator = torch.Generator().manual_seed(1)
            rows = []
            for _ in range(_HELD_OUT_BATCHES):
                batch = calls.draw(self.spec.frames, generator).to(self.team.device)
                with mixed(self.team.device):
                    rows.append(self._losses(batch, batch.sounds, generator)[1])
            figures |= {of + name: sum(row[name] for row in rows) / len(rows) for name in rows[0]
                        if not of or name in _OF_TOLD}
        return figures

    def export(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(self.spec.config, indent=2) + "\n")
        part = folder / f"{WEIGHTS}.part"
        save_file({name: tensor.detach().to(torch.bfloat16).contiguous().cpu()
                   for name, tensor in self.lm.state_dict().items()}, part)
        os.replace(part, folder / WEIGHTS)

    def _losses(self, batch: Batch, sounds: Tensor, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """`sounds` [B, T]: the steps whose codes are asked for. Words are asked for wherever there are some; of the
        padding between them only a share, which costs less than to weigh it down."""
        spec, lm = self.spec, self.lm
        x = lm.temporal(batch.inputs)
        drawn = torch.rand(batch.heard.shape, generator=generator).to(x.device)
        text = batch.taken[:, 0]
        text_asked = batch.text_counts & ((text != PAD_TOKEN) | (drawn < spec.pad_share))
        text, text_logits = text[text_asked], linear(x[text_asked], lm.text_linear.weight).float()
        text_loss = F.cross_entropy(text_logits, text)
        paces = batch.taken[:, 0][batch.paced] == EPAD_TOKEN
        pace_logits = linear(x[batch.paced], lm.text_linear.weight[[PAD_TOKEN, EPAD_TOKEN]]).float()
        pace_loss = F.cross_entropy(pace_logits, paces.long())
        tokens = batch.taken.transpose(1, 2)[sounds].T[None]  # [1, streams, N]
        codes = tokens[0, 1:1 + lm.config.generated_codebooks]
        logits = lm.depth(x[sounds][None], tokens)[0].float()  # [codebooks, N, card]
        each = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape).mean(1)
        weights = torch.ones_like(each)
        weights[0] = spec.first_codebook
        sound_loss = (each * weights).sum() / weights.sum()
        heard_asked = (batch.heard != PAD_TOKEN) | (drawn < spec.heard_pad_share)
        heard, heard_logits = batch.heard[heard_asked], self.heard(x[heard_asked]).float()
        heard_loss = F.cross_entropy(heard_logits, heard)
        told = batch.intent != NO_INTENT
        meant, meant_logits = batch.intent[told], self.meant(x[told]).float()
        meant_loss = F.cross_entropy(meant_logits, meant)
        right, heard_right = text_logits.argmax(-1) == text, heard_logits.argmax(-1) == heard
        figures = {
            "text": text_loss, "pace": pace_loss, "sound": sound_loss,
            "heard_loss": heard_loss, "meant_loss": meant_loss,
            "pieces": _share(right, (text != PAD_TOKEN) & (text != EPAD_TOKEN)),
            "epads": _share(right, text == EPAD_TOKEN),
            "pads": _share(right, text == PAD_TOKEN),
            "heard": _share(heard_right, (heard != PAD_TOKEN) & (heard != EPAD_TOKEN)),
            "meant": (meant_logits.argmax(-1) == meant).float().mean(),
            "first_codes": each[0], "second_codes": each[1], "last_codes": each[-1],
        }
        # a batch may have nothing to say, or nobody who speaks
        parts = (text_loss, pace_loss, sound_loss, spec.heard * heard_loss, spec.meant * meant_loss)
        total = torch.stack([torch.nan_to_num(part) for part in parts]).sum()
        return total, {name: float(figure.detach()) for name, figure in figures.items()}


@torch.no_grad()
def lend_ears(folder: Path, lm: LanguageModel, heard: nn.Linear, meant: nn.Linear) -> None:
    """Take over how a speech-to-text model hears: its codes' embeddings for the caller's, its layers for the first of
    the temporal transformer, its text's projection for the head that asks what was said, and its head for what was
    meant. The agent's own codes and text say little at first, so as not to drown what is heard. Raises
    TrainingError."""
    path = folder / stt.WEIGHTS
    theirs = load_file(path) | {f"meant.{name}": tensor for name, tensor in load_file(folder / stt.MEANT).items()}
    ours = dict(lm.named_parameters())
    first = lm.config.agent_codebooks
    for k in range(first):
        ours[f"emb.{k}.weight"].mul_(_OWN_VOICE)
    ours["text_emb.weight"].mul_(_OWN_VOICE)
    pairs: list[tuple[str, Tensor]] = [
        (f"emb.{k}.weight", ours[f"emb.{first + k}.weight"]) for k in range(lm.config.caller_codebooks)]
    pairs += [(name, ours[name]) for name in theirs if name.startswith("transformer.")]
    pairs += [("out_norm.alpha", ours["out_norm.alpha"]), ("text_linear.weight", heard.weight),
              ("meant.weight", meant.weight), ("meant.bias", meant.bias)]
    for name, weight in pairs:
        if name not in theirs or theirs[name].shape != weight.shape:
            raise TrainingError(f"{path}: {name} doesn't fit the language model")
        weight.copy_(theirs[name])


def _gaps(inputs: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which of the frames of inputs [B, streams, T] are in a gap [B, 1, T]."""
    calls, _, frames = inputs.shape
    runs = torch.rand(calls, 1, -(-frames // _GAP), generator=generator) < share
    return runs.repeat_interleave(_GAP, dim=-1)[..., :frames]


def _calls(path: Path, lm: LanguageModel, lag: int, *, answered: bool = True) -> Calls:
    tokens = Tokens.open(path)
    return Calls([tokens[i] for i in range(len(tokens))], lm, lag, answered=answered)


def _share(right: Tensor, of: Tensor) -> Tensor:
    """How many of those are right; NaN where there are none."""
    return right[of].float().mean()
