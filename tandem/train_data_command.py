"""`tandem train …`: what a small Moshi learns from."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agent.train.dataset import DatasetError
from agent.train.dialogues import callers_script, evaluation_script, training_script
from agent.train.domain.reader import DomainError
from agent.train.produce import Recipe, make_calls
from agent.train.speech import SpeechError
from agent.train.voices import SPLITS
from tandem.errors import UserError, told_in_one_line


def make_data(folder: Path, calls: int, seed: int, split: str, workers: int | None, *, callers_only: bool) -> None:
    """Make `calls` calls in `folder`: training's scripts in training's voices, or held-out ones in held-out voices."""
    chosen = next((name for name in SPLITS if name == split), None)
    if chosen is None:
        raise UserError(f"--split {split}: give one of {', '.join(SPLITS)}")
    if callers_only and chosen != "training":
        raise UserError("--callers-only: for --split training alone")
    write = callers_script if callers_only else training_script if chosen == "training" else evaluation_script
    columns = (TextColumn("making calls"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with told_in_one_line(DatasetError, DomainError, SpeechError, OSError), \
            Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("calls", total=calls)
        scripts = [write(seed * calls + number) for number in range(calls)]
        listed = make_calls(folder, scripts, Recipe(seed, chosen), workers=workers or os.cpu_count() or 1,
                            progress=lambda made, _: progress.update(task, completed=made))
    print(listed)
