"""Trains ears: a Mimi for what callers say alone, whose codes are asked for nothing but phones, words and meaning.

What the agent says is another codec's (codec.py), its voice; a checkpoint names both. So the two don't get into each
other's way: the gradient of how a voice sounds is a hundred times that of what is said. The decoder stays untrained.

The convolutions are a codec's that tells phones already (sounds.py); they stay as they are, and what is learnt from is
what they make of callers (heard.py). The transformer behind them, which begins as that codec's where it is as wide and
deep, learns without codebooks at first. Then there are some, at the latents' places, and they follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.config import MimiConfig
from agent.moshi.mimi import Mimi
from agent.train import codebooks
from agent.train.codec import export_codec, initialise, load_codec, told
from agent.train.domain.reader import load
from agent.train.heard import NO_INTENT, WORD_LABELS, Heard, Stretch
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME
from agent.train.precision import has_bfloat16, mixed
from agent.train.trainer import Task, Team, TrainingError

_LEARNT = ("encoder_transformer", "downsample", "quantizer")  # and the last convolution
_STRAIGHT = 0.5  # of the loss from before the codebooks, once there are some
_DECAY = 0.98  # of centroids, whose latents move faster than a voice's
_FIRST = 0.25  # of a latent that the first codebook's part begins with; the others' is the whole
_EVALUATED, _KMEANS_BATCHES = 16, 40  # batches
_WEIGHTS = {"phones": 1.0, "words": 1.0, "meant": 0.5}  # of the loss
# In what counts: a word's many labels must not leave phones, of which all words are made, without a dimension.
_COUNT = {"phones": 10.0, "words": 1.0, "meant": 0.5}


@dataclass(frozen=True)
class EarsSpec:
    """`config` is a mimi_config.json. The batch is divided among the processes."""

    config: Mapping[str, Any]
    of: Path  # the folder of the Mimi whose convolutions hear, and whose transformer, where it fits
    callers: Path  # what is learnt from (heard.py)
    held_out: Path
    batch: int = 32
    frames: int = 64  # of a stretch
    unquantised_steps: int = 4200
    commitment: float = 1.0
    dropout: float = 0.1  # of what the convolutions' channels say
    gaps: float = 0.06  # of the positions that nothing is heard in, in runs of a few


def make_task(team: Team, spec: EarsSpec) -> Task:
    return _EarsTask(team, spec)


class _EarsTask:
    def __init__(self, team: Team, spec: EarsSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        width, config = self.mimi.config.dimension, self.mimi.config
        self.last = f"encoder.model.{len(self.mimi.encoder.model) - 1}."
        generator = torch.Generator().manual_seed(0)
        initialise(self.mimi, 0.1 * torch.randn(4, 25 * config.frame_samples, generator=generator), generator)
        self._take_hearing()
        phones, intents = LABELS * LABELS_PER_FRAME, len(load().intents)
        # of the positions before they become frames, of the frames, of the first codebook, of all
        self.heads = nn.ModuleDict({name: nn.Linear(width, labels) for name, labels in {
            "phones_in_positions": LABELS, "phones_in_latents": phones, "phones_first": phones, "phones": phones,
            "words_in_latents": WORD_LABELS, "words": WORD_LABELS, "meant_in_latents": intents, "meant": intents,
        }.items()})
        self.callers = Heard.open(spec.callers)
        self.held_out = Heard.open(spec.held_out) if team.rank == 0 else None
        self.module = nn.ModuleDict({"mimi": self.mimi, "heads": self.heads}).to(team.device)
        for name, weight in self.mimi.named_parameters():
            weight.requires_grad_(name.startswith((*_LEARNT, self.last)))

    @torch.no_grad()
    def _take_hearing(self) -> None:
        hears, ours = load_codec(self.spec.of).state_dict(), dict(self.mimi.named_parameters())
        behind = [name for name in ours if name.startswith(("encoder_transformer", "downsample", self.last))]
        for name in ours:
            if name.startswith("encoder.") and not name.startswith(self.last) and not _fits(hears, name, ours[name]):
                raise TrainingError(f"{self.spec.of}: its convolutions aren't those of the ears' config ({name})")
        whole = all(_fits(hears, name, ours[name]) for name in behind)
        for name, weight in ours.items():
            if (whole and name in behind) or (name.startswith("encoder.") and name not in behind):
                weight.copy_(hears[name])

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        if step == spec.unquantised_steps:
            self._begin_codebooks()
        drawn = self._drawn(generator)
        convolved = self._thinned(drawn.convolved, generator)
        convolved = convolved if has_bfloat16(convolved.device) else convolved.float()
        with mixed(convolved.device):
            positions = self.mimi.heard(convolved)
            latents = self.mimi.frames(positions)
        losses, right = self._straight(positions.float(), latents.float(), drawn)
        total = _weighted(losses)
        if step >= spec.unquantised_steps:
            follow = codebooks.Following(step, self.team, generator, _DECAY)
            whole, first, distance = codebooks.quantised(self.mimi.quantizer, latents.float(), None, follow)
            losses, more = self._coded(whole, first, drawn)
            total = _STRAIGHT * total + _weighted(losses) + spec.commitment * distance
            right |= more | {"distance": distance.item()}
        return total, right

    def evaluate(self) -> Mapping[str, float]:
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(_EVALUATED):
            drawn = self._to_device(self.held_out.draw(8, 2 * self.spec.frames, generator))
            positions = self.mimi.heard(drawn.convolved.float())
            latents, quantizer = self.mimi.frames(positions), self.mimi.quantizer
            codes = quantizer.encode(latents, self.mimi.config.codebooks)
            whole, first = quantizer.decode(codes), quantizer.rvq_first.decode(codes[..., :1])
            rows.append(self._straight(positions, latents, drawn)[1] | self._coded(whole, first, drawn)[1])
        return {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}

    def export(self, folder: Path) -> None:
        export_codec(self.mimi, self.spec.config, folder)

    def _straight(self, positions: Tensor, latents: Tensor, drawn: Stretch
                  ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses, and how much is right, of what is told before there are codes."""
        return self._asked({
            "phones_in_positions": (positions, drawn.phones), "phones_in_latents": (latents, drawn.phones),
            "words_in_latents": (latents, drawn.words), "meant_in_latents": (latents, drawn.intent)})

    def _coded(self, whole: Tensor, first: Tensor, drawn: Stretch) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self._asked({"phones_first": (first, drawn.phones), "phones": (whole, drawn.phones),
                            "words": (whole, drawn.words), "meant": (whole, drawn.intent)})

    def _asked(self, of: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], dict[str, float]]:
        losses, right = {}, {}
        for name, (x, labels) in of.items():
            if name.startswith("meant"):
                known = labels != NO_INTENT
                logits, labels = self.heads[name](x[known]), labels[known]
                losses[name] = F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
                right[name] = float((logits.argmax(-1) == labels).float().mean())
            else:
                losses[name], right[name] = told(self.heads[name], x, labels)
        return losses, right

    def _thinned(self, convolved: Tensor, generator: torch.Generator) -> Tensor:
        batch, positions, channels = convolved.shape
        kept = torch.rand(batch, 1, channels, generator=generator) >= self.spec.dropout
        runs = torch.rand(batch, -(-positions // 4), 1, generator=generator) >= self.spec.gaps
        kept = kept & runs.repeat_interleave(4, dim=1)[:, :positions]
        return convolved * kept.to(convolved.device)

    def _drawn(self, generator: torch.Generator) -> Stretch:
        count = max(1, self.spec.batch // self.team.size)
        return self._to_device(self.callers.draw(count, self.spec.frames, generator))

    def _to_device(self, drawn: Stretch) -> Stretch:
        return Stretch(*(part.to(self.team.device) for part in drawn))

    @torch.no_grad()
    def _begin_codebooks(self) -> None:
        """Centroids at the latents of some callers, in the few dimensions in which latents differ for the heads."""
        generator = torch.Generator().manual_seed(2)
        drawn = [self._drawn(generator) for _ in range(_KMEANS_BATCHES)]
        latents = torch.cat([self.mimi.frames(self.mimi.heard(part.convolved.float())).flatten(0, 1) for part in drawn])
        quantizer = self.mimi.quantizer
        for half, names in ((quantizer.rvq_first, ("phones",)), (quantizer.rvq_rest, ("phones", "words", "meant"))):
            asked = [self.heads[f"{name}_in_latents"].weight * _COUNT[name] ** 0.5 for name in names]
            into, out_of = _what_counts(latents, torch.cat(asked), half.input_proj.weight.shape[0])
            half.input_proj.weight.copy_(self.team.share_(into)[..., None])
            half.output_proj.weight.copy_(self.team.share_(out_of)[..., None])
        quantizer.rvq_first.output_proj.weight.mul_(_FIRST)
        for name in ("phones", "words", "meant"):
            self.heads[name].load_state_dict(self.heads[f"{name}_in_latents"].state_dict())
        codebooks.begin(quantizer, latents, self.team, generator)


def _fits(weights: Mapping[str, Tensor], name: str, ours: Tensor) -> bool:
    return name in weights and weights[name].shape == ours.shape


def _what_counts(latents: Tensor, asked: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Maps [width, dimension] and back [dimension, width] of latents [count, dimension], such that distances are those
    of what the heads `asked` [answers, dimension] make of them, as far as so few dimensions can tell."""
    spread, axes = torch.linalg.eigh(latents.T.cov())
    root = axes * spread.clamp(min=1e-6 * float(spread.max())).sqrt()  # latents are root @ something white
    _, weights, directions = torch.linalg.svd(asked @ root, full_matrices=False)
    weights, directions = weights[:width] / weights[:width].square().mean().sqrt(), directions[:width]
    return (weights[:, None] * directions) @ torch.linalg.pinv(root), root @ directions.T / weights


def _weighted(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([loss * _WEIGHTS[name.partition("_")[0]] for name, loss in losses.items()]).sum()
