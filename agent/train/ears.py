"""Trains ears: a Mimi for what callers say alone, whose codes are asked for nothing but phonemes and words.

What the agent says is another codec's (codec.py), its voice; a checkpoint names both. So the two don't get into each
other's way: the gradient of how a voice sounds is a hundred times that of what is said. The decoder stays untrained.

The encoder learns without codebooks at first. Then there are some, at the latents' places, and they follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent.moshi.config import MimiConfig
from agent.moshi.mimi import Mimi
from agent.train import codebooks
from agent.train.codec import begin_codebooks, export_codec, initialise, told
from agent.train.codec_data import WORD_LABELS, Drawn, Stretches, read_stretches
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME
from agent.train.trainer import Task, Team

_LEARNT = ("encoder", "downsample")  # and the quantiser's projections of what comes in
_DITHER = 1e-4  # of full scale: in digital silence every norm would multiply its gradient
_TEMPO = 1.13
_WORDS = 0.25  # of the loss, against phonemes
_STRAIGHT = 0.5  # of the loss from before the codebooks, once there are some
_EVALUATED = 8  # batches


@dataclass(frozen=True)
class EarsSpec:
    """`config` is a mimi_config.json. The batch is divided among the processes."""

    config: Mapping[str, Any]
    calls: tuple[Path, ...]  # the lists of what is learnt from
    held_out: Path
    batch: int = 16
    frames: int = 50  # of a stretch
    unquantised_steps: int = 2000
    commitment: float = 0.5


def make_task(team: Team, spec: EarsSpec) -> Task:
    return _EarsTask(team, spec)


class _EarsTask:
    def __init__(self, team: Team, spec: EarsSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        width = self.mimi.config.dimension
        # of the positions before they become frames, of the frames, of the first codebook, of all
        phones = {"positions": LABELS} | dict.fromkeys(("latents", "first", "all"), LABELS * LABELS_PER_FRAME)
        words = dict.fromkeys(("words_in_latents", "words"), WORD_LABELS)
        self.heads = nn.ModuleDict({name: nn.Linear(width, labels) for name, labels in (phones | words).items()})
        self.calls = read_stretches(spec.calls, spec.frames, agent_share=0.0, tempo=_TEMPO)
        self.held_out = None
        if team.rank == 0:
            self.held_out = read_stretches([spec.held_out], spec.frames, agent_share=0.0,
                                           vocabulary=self.calls.vocabulary)
        self.module = nn.ModuleDict({"mimi": self.mimi, "heads": self.heads}).to(team.device)
        generator = torch.Generator().manual_seed(0)
        initialise(self.mimi, self.calls.draw(16, generator).pcm.to(team.device), generator)
        for name, weight in self.mimi.named_parameters():
            weight.requires_grad_(name.startswith(_LEARNT) or ".input_proj." in name)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        if step == spec.unquantised_steps:
            begin_codebooks(self.mimi, lambda drawing: self._drawn(self.calls, 8, drawing).pcm, self.team)
        drawn = self._drawn(self.calls, max(1, spec.batch // self.team.size), generator)
        pcm = drawn.pcm + _DITHER * torch.randn(drawn.pcm.shape, generator=generator).to(drawn.pcm.device)
        with torch.autocast(pcm.device.type, torch.bfloat16):
            positions = self.mimi.positions(pcm)
            latents = self.mimi.frames(positions)
        losses, right = self._straight(positions.float(), latents.float(), drawn)
        total = _weighted(losses)
        if step >= spec.unquantised_steps:
            follow = codebooks.Following(step, self.team, generator)
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
            drawn = self._drawn(self.held_out, 8, generator)
            positions = self.mimi.positions(drawn.pcm)
            latents, quantizer = self.mimi.frames(positions), self.mimi.quantizer
            codes = quantizer.encode(latents, self.mimi.config.codebooks)
            whole, first = quantizer.decode(codes), quantizer.rvq_first.decode(codes[..., :1])
            rows.append(self._straight(positions, latents, drawn)[1] | self._coded(whole, first, drawn)[1])
        return {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}

    def export(self, folder: Path) -> None:
        export_codec(self.mimi, self.spec.config, folder)

    def _straight(self, positions: Tensor, latents: Tensor, drawn: Drawn
                  ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses, and how much is right, of what is told before there are codes."""
        return self._asked({"positions": (positions, drawn.phones), "latents": (latents, drawn.phones),
                            "words_in_latents": (latents, drawn.words)})

    def _coded(self, whole: Tensor, first: Tensor, drawn: Drawn) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self._asked({"first": (first, drawn.phones), "all": (whole, drawn.phones),
                            "words": (whole, drawn.words)})

    def _asked(self, of: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], dict[str, float]]:
        answers = {name: told(self.heads[name], x, labels) for name, (x, labels) in of.items()}
        return ({name: loss for name, (loss, _) in answers.items()},
                {name: right for name, (_, right) in answers.items()})

    def _drawn(self, stretches: Stretches, count: int, generator: torch.Generator) -> Drawn:
        return Drawn(*(part.to(self.team.device) for part in stretches.draw(count, generator)))


def _weighted(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([loss * (_WORDS if name.startswith("words") else 1) for name, loss in losses.items()]).sum()
