"""Trains convolutions that hear: the encoder of a Mimi that tells what phone a caller speaks, and nothing else.

Ears (ears.py) begin with them. They learn from sound, on short stretches, which takes most of a step; what lies behind
them then learns from what they make of sound, on long ones.
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
from agent.train.codec import export_codec, initialise, told
from agent.train.codec_data import Drawn, Stretches, read_stretches
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME
from agent.train.precision import mixed
from agent.train.trainer import Task, Team

DITHER = 1e-4  # of full scale: in digital silence every norm would multiply its gradient

_LEARNT = ("encoder", "downsample")
_TEMPO = 1.13
_EVALUATED = 8  # batches


@dataclass(frozen=True)
class SoundsSpec:
    """`config` is a mimi_config.json. The batch is divided among the processes."""

    config: Mapping[str, Any]
    calls: tuple[Path, ...]  # the lists of what is learnt from
    held_out: Path
    batch: int = 16
    frames: int = 50  # of a stretch


def make_task(team: Team, spec: SoundsSpec) -> Task:
    return _SoundsTask(team, spec)


class _SoundsTask:
    def __init__(self, team: Team, spec: SoundsSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        width = self.mimi.config.dimension
        self.heads = nn.ModuleDict({"positions": nn.Linear(width, LABELS),
                                    "frames": nn.Linear(width, LABELS * LABELS_PER_FRAME)})
        self.calls = read_stretches(spec.calls, spec.frames, agent_share=0.0, tempo=_TEMPO)
        self.held_out = read_stretches([spec.held_out], spec.frames, agent_share=0.0) if team.rank == 0 else None
        self.module = nn.ModuleDict({"mimi": self.mimi, "heads": self.heads}).to(team.device)
        generator = torch.Generator().manual_seed(0)
        initialise(self.mimi, self.calls.draw(16, generator).pcm.to(team.device), generator)
        for name, weight in self.mimi.named_parameters():
            weight.requires_grad_(name.startswith(_LEARNT))

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        drawn = self._drawn(self.calls, max(1, self.spec.batch // self.team.size), generator)
        pcm = drawn.pcm + DITHER * torch.randn(drawn.pcm.shape, generator=generator).to(drawn.pcm.device)
        with mixed(pcm.device):
            positions = self.mimi.positions(pcm)
            frames = self.mimi.frames(positions)
        losses, right = self._asked(positions.float(), frames.float(), drawn.phones)
        return torch.stack(losses).sum(), right

    def evaluate(self) -> Mapping[str, float]:
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(_EVALUATED):
            drawn = self._drawn(self.held_out, 8, generator)
            positions = self.mimi.positions(drawn.pcm)
            rows.append(self._asked(positions, self.mimi.frames(positions), drawn.phones)[1])
        return {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}

    def export(self, folder: Path) -> None:
        export_codec(self.mimi, self.spec.config, folder)

    def _asked(self, positions: Tensor, frames: Tensor, phones: Tensor) -> tuple[list[Tensor], dict[str, float]]:
        """The losses of what is told by the positions before they become frames and by the frames, and how much of it
        is right."""
        answers = {name: told(self.heads[name], x, phones)
                   for name, x in (("positions", positions), ("frames", frames))}
        return [loss for loss, _ in answers.values()], {name: right for name, (_, right) in answers.items()}

    def _drawn(self, stretches: Stretches, count: int, generator: torch.Generator) -> Drawn:
        return Drawn(*(part.to(self.team.device) for part in stretches.draw(count, generator)))
