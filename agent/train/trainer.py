"""The loop that all trainings share: steps on several processes as one, resumable, the same for the same seed.

Each process is given its own share of a step's batch and all of them the mean of the gradients, so that the weights
stay the same in each. On a CPU two processes of one thread are twice as fast as one of two threads.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agent.train.muon import Muon

PROGRESS = "progress.jsonl"
STATE = "state.pt"

_PATIENCE_S = 600.0  # how long a process waits for the others
_LAST_WORDS_S = 5.0


class TrainingError(RuntimeError):
    """One line that says why a training can't go on."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. A cosine takes the rate from `learning_rate` to `final` of it."""

    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # of matrices; vectors have none
    warmup: int = 100
    final: float = 0.04
    clip: float = 1.0  # of the gradient's norm
    muon: bool = False  # the transformers' matrices by Muon (Jordan et al., 2024), at AdamW's rate
    seed: int = 0
    processes: int = 1
    device: str = "cpu"
    log_every: int = 50  # steps, over which figures are averaged
    evaluate_every: int = 500
    save_every: int = 500

    def rate(self, step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (self.final + (1 - self.final) * cosine)


@dataclass(frozen=True)
class Team:
    """The processes of a training, as one of them sees them."""

    rank: int
    size: int
    device: torch.device

    def sum_(self, tensor: Tensor) -> Tensor:
        """Over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_(self, tensor: Tensor) -> Tensor:
        """The first process's values for all, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor


class Task(Protocol):
    """What is trained. Made anew in each process, the same in each."""

    @property
    def module(self) -> nn.Module:
        """Everything that has weights, gradients on."""
        ...

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """This process's share of the step: its loss, and figures to log. `generator` depends on step and process."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Figures on what isn't trained on; called in the first process alone."""
        ...

    def export(self, folder: Path) -> None:
        """Write what the training is for."""
        ...


MakeTask = Callable[[Team, Any], Task]


def train(make: MakeTask, spec: Any, plan: Plan, folder: Path, tell: Callable[[str], None] = print) -> None:
    """Train `make(team, spec)` and export it into `folder`; goes on from the folder's state where it has one.

    `make` is a module's function and `spec` can be pickled. Raises TrainingError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if plan.processes == 1:
        return _run(0, make, spec, plan, folder, tell)
    meeting = folder / f"meeting-{os.getpid()}-{time.monotonic_ns()}"
    context = multiprocessing.get_context("spawn")
    others: list[BaseProcess] = []
    try:
        for rank in range(1, plan.processes):
            others.append(context.Process(target=_join, args=(rank, make, spec, plan, folder, meeting), daemon=True))
            others[-1].start()
        _meet(0, plan, meeting)
        _run(0, make, spec, plan, folder, tell)
        for process in others:
            process.join(_PATIENCE_S)
    except RuntimeError as error:
        for process in others:  # whoever is gone took the connection along
            process.join(_LAST_WORDS_S)
        if any(process.exitcode not in (None, 0) for process in others):
            raise TrainingError("a process of the training has died; its error stands above") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for process in others:
            process.kill()
        meeting.unlink(missing_ok=True)


def _join(rank: int, make: MakeTask, spec: Any, plan: Plan, folder: Path, meeting: Path) -> None:
    _meet(rank, plan, meeting)
    _run(rank, make, spec, plan, folder, _silent)
    dist.destroy_process_group()


def _meet(rank: int, plan: Plan, meeting: Path) -> None:
    dist.init_process_group("gloo", init_method=meeting.resolve().as_uri(), rank=rank, world_size=plan.processes,
                            timeout=timedelta(seconds=_PATIENCE_S))


def _silent(_: str) -> None:
    pass


def _run(rank: int, make: MakeTask, spec: Any, plan: Plan, folder: Path, tell: Callable[[str], None]) -> None:
    device = torch.device(plan.device)
    if device.type == "cpu" and plan.processes > 1:
        torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    team = Team(rank, plan.processes, device)
    task = make(team, spec)
    optimizer = _Optimizer(task.module, plan)
    first = _resume(task, optimizer, plan, folder)
    if first and rank == 0:
        tell(f"goes on from step {first} of {plan.steps}")
    log = _Log(folder / PROGRESS, tell, first)
    for step in range(first, plan.steps):
        generator = torch.Generator(device="cpu").manual_seed(_mixed(plan.seed, step, rank))
        for part in optimizer.parts:
            for group in part.param_groups:
                group["lr"] = plan.rate(step)
        loss, figures = task.loss(step, generator)
        optimizer.zero_grad()
        loss.backward()
        norm = _average(task.module, team, plan.clip)
        if math.isfinite(norm):
            optimizer.step()
        done = step + 1
        if rank == 0:
            log.add({"loss": float(loss.detach()), **figures, "gradient": norm})
            if done % plan.log_every == 0:
                log.write(done, plan.rate(step))
            if done % plan.evaluate_every == 0 or done == plan.steps:
                with torch.no_grad():
                    log.held_out(done, task.evaluate())
            if done % plan.save_every == 0 or done == plan.steps:
                _save(task, optimizer, plan, done, folder)
                task.export(folder)


class _Optimizer:
    """AdamW, and Muon for the matrices that are within a transformer's layers where the plan wants it: what moves them
    is made orthogonal, so that directions with small gradients are learnt as fast as those with large ones."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        inner = [p for name, p in named if plan.muon and "transformer.layers." in name and p.dim() == 2]
        others = [p for _, p in named if not any(p is one for one in inner)]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(
            [{"params": [p for p in others if p.squeeze().dim() > 1], "weight_decay": plan.weight_decay},
             {"params": [p for p in others if p.squeeze().dim() <= 1], "weight_decay": 0.0}],
            lr=plan.learning_rate, betas=plan.betas, fused=True)]
        if inner:
            self.parts.append(Muon(inner, plan.learning_rate, plan.weight_decay))

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


@torch.no_grad()
def _average(module: nn.Module, team: Team, clip: float) -> float:
    """The mean of all processes' gradients, clipped; returns its norm before."""
    weights = [p for p in module.parameters() if p.requires_grad]
    if team.size > 1:
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in weights])
        team.sum_(flat).div_(team.size)
        at = 0
        for p in weights:
            p.grad = flat[at:at + p.numel()].view_as(p)
            at += p.numel()
    return float(nn.utils.clip_grad_norm_(weights, clip))


def _mixed(seed: int, step: int, rank: int) -> int:
    return ((seed + 1) * 1_000_003 + step) * 64 + rank


def _save(task: Task, optimizer: _Optimizer, plan: Plan, step: int, folder: Path) -> None:
    part = folder / f"{STATE}.part"
    torch.save({"step": step, "steps": plan.steps, "seed": plan.seed, "module": task.module.state_dict(),
                "optimizer": optimizer.state_dict()}, part)
    os.replace(part, folder / STATE)


def _resume(task: Task, optimizer: _Optimizer, plan: Plan, folder: Path) -> int:
    """The step to go on from: 0 where the folder has no state. Raises TrainingError for another training's."""
    path = folder / STATE
    if not path.exists():
        return 0
    state = torch.load(path, map_location=plan.device, weights_only=True)
    if (state["steps"], state["seed"]) != (plan.steps, plan.seed):
        raise TrainingError(f"{path}: is of a training of {state['steps']} steps with seed {state['seed']}, not of "
                            f"{plan.steps} with seed {plan.seed}; give another folder or remove it")
    try:
        task.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{path}: is of another model ({str(error).splitlines()[0]})") from None
    return int(state["step"])


class _Log:
    """Means of what a training tells, a line each in a JSONL file, from which curves are drawn."""

    def __init__(self, path: Path, tell: Callable[[str], None], first: int) -> None:
        self.path, self.tell = path, tell
        self.sums: dict[str, list[float]] = {}
        self.since = time.monotonic()
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= first] \
            if first and path.exists() else []
        path.write_text("".join(f"{line}\n" for line in kept))

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self.sums.setdefault(name, []).append(value)

    def write(self, step: int, rate: float) -> None:
        means = {name: sum(values) / len(values) for name, values in self.sums.items() if values}
        count = max((len(values) for values in self.sums.values()), default=1)
        seconds = (time.monotonic() - self.since) / count
        self._append({"step": step, "kind": "training", "rate": rate, "seconds_a_step": seconds, **means})
        self.sums, self.since = {}, time.monotonic()

    def held_out(self, step: int, figures: Mapping[str, float]) -> None:
        began = time.monotonic()
        self._append({"step": step, "kind": "held out", **figures})
        self.since += time.monotonic() - began

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({name: round(value, 6) if isinstance(value, float) else value
                                   for name, value in entry.items()}) + "\n")
        shown = " ".join(f"{name} {value:.4g}" for name, value in entry.items() if isinstance(value, float))
        self.tell(f"{entry['kind']}, step {entry['step']}: {shown}")


def processes_for(device: str) -> int:
    """As many processes as there are cores on a CPU, up to 8; one on a GPU."""
    return 1 if device != "cpu" else min(8, len(os.sched_getaffinity(0)))
