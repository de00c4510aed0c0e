"""Muon against the library's own, and in float32, where a CPU has nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agent.train import muon
from agent.train.muon import Muon, orthogonal

SHAPES = [(16, 16), (8, 48), (48, 8)]


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: request.param)
    return bool(request.param)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_directions_become_alike(shape: tuple[int, int], half: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    short = min(shape)
    stretched = torch.diag(torch.logspace(0, -1.5, short)) @ torch.randn(short, max(shape), generator=generator)
    matrix = stretched if shape[0] == short else stretched.T
    lengths = torch.linalg.svdvals(orthogonal(matrix, half=half))
    assert lengths.min() > 0.4
    assert lengths.max() < 1.3
    assert torch.linalg.svdvals(matrix).max() > 10 * torch.linalg.svdvals(matrix).min()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_steps_as_the_librarys_own(shape: tuple[int, int], has_bfloat16: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = (Muon([ours], lr=0.01, weight_decay=0.1),
                  torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs.detach() - 1).abs().mean()
    far = (ours.detach() - theirs.detach()).abs().mean()
    assert far < (0.02 if has_bfloat16 else 0.05) * moved
