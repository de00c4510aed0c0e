"""`tandem train stt`: the caller's words and pauses, from encoded calls."""

from __future__ import annotations

from pathlib import Path

from agent.moshi.config import ConfigError
from agent.moshi.text import TokenizerError
from agent.train.codec import CONFIG as MIMI_CONFIG
from agent.train.dataset import DatasetError
from agent.train.stt import SttSpec, make_task
from agent.train.trainer import Plan, TrainingError, processes_for, train
from tandem.errors import UserError, told_in_one_line

LEARNING_RATE = 1e-3


def train_stt(folder: Path, calls: list[Path], held_out: Path, agent: Path, *, steps: int, batch: int, dim: int,
              delay_s: float, processes: int | None, device: str, seed: int) -> None:
    """Train in `folder`, or go on there; `agent` is the checkpoint folder whose Mimi and tokenizer made the calls."""
    spec = SttSpec(tuple(calls), held_out, codec=agent, tokenizer=agent / "tokenizer.model", dim=dim, delay_s=delay_s,
                   batch=batch)
    for path in (*calls, held_out, agent / MIMI_CONFIG, spec.tokenizer):
        if not path.is_file():  # told here once, rather than by each process
            raise UserError(f"{path}: there is no such file")
    plan = Plan(steps, LEARNING_RATE, seed=seed, processes=processes or processes_for(device), device=device)
    with told_in_one_line(ConfigError, DatasetError, TrainingError, TokenizerError, OSError):
        train(make_task, spec, plan, folder)
    print(folder)
