"""`tandem train nano` and its stages by themselves: codec, tokens, language model, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from agent.moshi.config import ConfigError, MimiConfig
from agent.moshi.mimi import Mimi
from agent.moshi.text import Tokenizer, TokenizerError
from agent.train import codec, lm
from agent.train.curves import draw_curves
from agent.train.dataset import DatasetError
from agent.train.domain.reader import DomainError
from agent.train.nano import LM, MIMI, STAGES, NanoRecipe, codec_plan, train_nano
from agent.train.speech import SpeechError
from agent.train.tokens import encode_calls
from agent.train.trainer import Plan, TrainingError, processes_for, train
from tandem.errors import UserError, told_in_one_line


@contextmanager
def _told() -> Iterator[None]:
    with told_in_one_line(ConfigError, DatasetError, DomainError, SpeechError, TokenizerError, TrainingError, OSError):
        yield


def nano(folder: Path, stages: tuple[str, ...], device: str, processes: int | None) -> None:
    """The whole recipe in `folder`, or the named stages of it."""
    if unknown := sorted(set(stages) - set(STAGES)):
        raise UserError(f"--stages {unknown[0]}: give some of {', '.join(STAGES)}")
    with _told():
        print(train_nano(folder, NanoRecipe(), device=device, processes=processes, stages=stages or STAGES))


def mimi(folder: Path, calls: list[Path], held_out: Path, tokenizer: Path, config: Path | None, *, steps: int,
         batch: int, seed: int, device: str, processes: int | None) -> None:
    """Train a codec in `folder`, or go on there."""
    spec = codec.CodecSpec(_config(config, MIMI), tuple(_there(listed) for listed in calls), _there(held_out),
                           _there(tokenizer), batch=batch)
    with _told():
        train(codec.make_task, spec, codec_plan(steps, seed, processes or processes_for(device), device), folder)
    print(folder)


def tokens(out: Path, calls: list[Path], agent: Path, workers: int | None) -> None:
    """Encode calls by the codec and the tokenizer of the checkpoint folder `agent`."""
    config, weights, text = (_there(agent / name) for name in (codec.CONFIG, codec.WEIGHTS, "tokenizer.model"))
    with _told():
        model = Mimi(MimiConfig.from_dict(json.loads(config.read_text())))
        model.load_state_dict(load_file(weights))
        encode_calls(calls, model.eval(), Tokenizer(text), out, workers=workers or processes_for("cpu"))
    print(out)


def language_model(folder: Path, calls: Path, held_out: Path, config: Path | None, mimi: Path | None,
                   callers: Path | None, *, steps: int, frames: int, seed: int, device: str,
                   processes: int | None) -> None:
    """Train a language model in `folder`, or go on there; `mimi`: the folder of the codec that encoded the calls;
    `callers`: calls in which nobody answers."""
    spec = lm.LMSpec(_config(config, LM), _there(calls), _there(held_out), None if callers is None else _there(callers),
                     frames=frames, codec=mimi)
    plan = Plan(steps, learning_rate=1e-3, seed=seed, device=device, processes=processes or processes_for(device))
    with _told():
        train(lm.make_task, spec, plan, folder)
    print(folder)


def curves(folder: Path, out: Path) -> None:
    """Draw what a training in `folder` has logged."""
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"{out}: give a .png or an .svg")
    with _told():
        draw_curves(folder, out)
    print(out)


def _config(path: Path | None, default: Any) -> Any:
    if path is None:
        return default
    try:
        return json.loads(_there(path).read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _there(path: Path) -> Path:
    """Said here once, rather than by each process."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path
