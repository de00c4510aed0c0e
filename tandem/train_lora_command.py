"""`tandem train lora`: a checkpoint learns from calls of one's own."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agent.moshi.checkpoint import CheckpointError
from agent.moshi.text import TokenizerError
from agent.train.dataset import DatasetError
from agent.train.lora import LoraSpec, default_plan, fine_tune
from agent.train.trainer import TrainingError, processes_for
from tandem.errors import UserError, told_in_one_line

_FRAMES_A_SECOND = 12.5


def train_lora(
    model: str, calls: Path, folder: Path, held_out: Path | None, *, rank: int, scaling: float, ft_embed: bool,
    learning_rate: float, steps: int, batch: int, window_s: float, at_once: int, copies: int, seed: int, device: str,
    processes: int | None,
) -> None:
    """Fine-tune `model` into `folder`; the folder's name is printed when it is done."""
    device = _device(device)
    plan = default_plan(steps, learning_rate, seed=seed, device=device,
                        processes=min(batch, processes or processes_for(device)))
    spec = LoraSpec(model, folder, rank=rank, scaling=scaling, embeddings=ft_embed, batch=batch,
                    frames=round(window_s * _FRAMES_A_SECOND), at_once=at_once)
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("encoding {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with told_in_one_line(CheckpointError, DatasetError, TokenizerError, TrainingError, OSError), \
            Progress(*columns, console=console, transient=True) as progress:
        tasks = {}

        def encoded(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done)

        fine_tune(spec, plan, calls, held_out, copies=copies, progress=encoded,
                  tell=lambda line: console.print(line, soft_wrap=True))
    print(folder)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: there is no such device here")
    return name
