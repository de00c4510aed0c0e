"""The loop that trainings share: as one over several processes, resumable, logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agent.train.trainer import PROGRESS, STATE, Plan, Task, Team, TrainingError, train

PLAN = Plan(steps=20, learning_rate=0.05, warmup=1, log_every=5, evaluate_every=10, save_every=10)


class Fit:
    """y = 2 x - 1, from points that each process draws for itself."""

    def __init__(self, team: Team, dies_at: int | None) -> None:
        self.team, self.dies_at = team, dies_at
        self.module: nn.Module = nn.Linear(1, 1)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if step == self.dies_at and self.team.rank == self.team.size - 1:
            raise SystemExit(3)
        x = torch.rand(8, 1, generator=generator)
        loss = (self.module(x) - 2 * x + 1).square().mean()
        return loss, {"first": float(x[0])}

    def evaluate(self) -> Mapping[str, float]:
        x = torch.linspace(0, 1, 5)[:, None]
        return {"error": float((self.module(x) - 2 * x + 1).abs().max())}

    def export(self, folder: Path) -> None:
        (folder / "weight").write_text(str(self.module.weight.item()))  # type: ignore[operator, union-attr]


def make(team: Team, dies_at: int | None) -> Task:
    return Fit(team, dies_at)


class FitWithin:
    """A matrix within a transformer's layer and one outside, from gradients of a single direction."""

    def __init__(self, team: Team, dies_at: int | None) -> None:
        del team
        self.dies_at = dies_at
        within, outside = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.module: nn.Module = nn.ModuleDict({
            "transformer": nn.ModuleDict({"layers": nn.ModuleList([within])}), "head": outside})
        self.weights = within.weight, outside.weight
        with torch.no_grad():
            for weight in self.weights:
                weight.copy_(torch.eye(8))

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if step == self.dies_at:
            raise SystemExit(3)
        wanted = torch.randn(8, 8, generator=generator) * torch.logspace(0, -2, 8)[:, None]
        return torch.stack([(weight * wanted).sum() for weight in self.weights]).sum(), {}

    def evaluate(self) -> Mapping[str, float]:
        return {}

    def export(self, folder: Path) -> None:
        torch.save([weight.detach().clone() for weight in self.weights], folder / "weights")


def make_within(team: Team, dies_at: int | None) -> Task:
    return FitWithin(team, dies_at)


def progress(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / PROGRESS).read_text().splitlines()]


def silent(_: str) -> None:
    pass


def test_it_learns_logs_and_exports(tmp_path: Path) -> None:
    plan = Plan(steps=300, learning_rate=0.1, warmup=1, weight_decay=0, log_every=50, evaluate_every=100)
    train(make, None, plan, tmp_path, silent)
    lines = progress(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "held out"] == [100, 200, 300]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [50, 100, 150, 200, 250, 300]
    assert lines[-1]["error"] < 0.05
    assert float((tmp_path / "weight").read_text()) == pytest.approx(2, abs=0.05)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "two"):
        train(make, None, PLAN, tmp_path / name, silent)
        weights.append((tmp_path / name / "weight").read_text())
    assert weights[0] == weights[1]


def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    train(make, None, PLAN, tmp_path / "whole", silent)
    with pytest.raises(SystemExit):
        train(make, 14, PLAN, tmp_path / "cut", silent)
    assert not (tmp_path / "cut" / "weight").exists() or progress(tmp_path / "cut")[-1]["step"] == 10
    train(make, None, PLAN, tmp_path / "cut", silent)
    assert (tmp_path / "cut" / "weight").read_text() == (tmp_path / "whole" / "weight").read_text()
    whole, cut = progress(tmp_path / "whole"), progress(tmp_path / "cut")
    assert [(line["step"], line.get("loss"), line.get("error")) for line in whole] == [
        (line["step"], line.get("loss"), line.get("error")) for line in cut]


def test_muon_moves_a_layers_matrices_alike_in_all_directions_and_no_others(tmp_path: Path) -> None:
    plan = Plan(steps=1, learning_rate=0.1, warmup=1, weight_decay=0, muon=True)
    train(make_within, None, plan, tmp_path, silent)
    within, outside = (torch.linalg.svdvals(weight - torch.eye(8)) for weight in torch.load(tmp_path / "weights"))
    assert within[5] > 0.6 * within[0]  # of 8, the largest first, though gradients differ a hundredfold
    assert outside[5] < 0.4 * outside[0]  # AdamW: every entry by as much, whatever its sign


def test_muon_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    plan = Plan(steps=20, learning_rate=0.05, warmup=1, save_every=10, muon=True)
    train(make_within, None, plan, tmp_path / "whole", silent)
    with pytest.raises(SystemExit):
        train(make_within, 14, plan, tmp_path / "cut", silent)
    train(make_within, None, plan, tmp_path / "cut", silent)
    whole, cut = (torch.load(tmp_path / name / "weights") for name in ("whole", "cut"))
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    from dataclasses import replace

    plan = replace(PLAN, steps=300, learning_rate=0.1, weight_decay=0, processes=2, log_every=100)
    train(make, None, plan, tmp_path, silent)
    assert progress(tmp_path)[-1]["error"] < 0.05
    first = (tmp_path / "weight").read_text()
    (tmp_path / STATE).unlink()
    train(make, None, plan, tmp_path, silent)
    assert (tmp_path / "weight").read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PROGRESS, STATE, "weight"])


def test_a_process_that_dies_ends_the_training(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(TrainingError, match="a process of the training has died"):
        train(make, 5, replace(PLAN, processes=2), tmp_path, silent)


def test_another_trainings_state_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    train(make, None, PLAN, tmp_path, silent)
    with pytest.raises(TrainingError, match="of a training of 20 steps with seed 0, not of 30 with seed 0"):
        train(make, None, replace(PLAN, steps=30), tmp_path, silent)


def test_the_rate_rises_and_falls() -> None:
    plan = Plan(steps=1000, learning_rate=1.0, warmup=100, final=0.1)
    assert plan.rate(0) == pytest.approx(0.01, rel=1e-3)
    assert plan.rate(99) == pytest.approx(1.0, rel=0.03)
    assert plan.rate(1000) == pytest.approx(0.1)
