"""`tandem train nano` and its stages by themselves: codec, tokens, language model, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.moshi.config import ConfigError
from agent.moshi.text import Tokenizer, TokenizerError
from agent.train import codec, lm, sounds, stt
from agent.train.curves import draw_curves
from agent.train.dataset import DatasetError
from agent.train.domain.reader import DomainError
from agent.train.ears import EarsSpec
from agent.train.nano import (
    EARS,
    LM,
    MIMI,
    STAGES,
    NanoRecipe,
    ears_plan,
    going_on,
    sounds_plan,
    train_ears,
    train_nano,
)
from agent.train.speech import SpeechError
from agent.train.tokens import encode_calls
from agent.train.trainer import Plan, TrainingError, processes_for, train
from tandem.errors import UserError, told_in_one_line


@contextmanager
def _told() -> Iterator[None]:
    with told_in_one_line(ConfigError, DatasetError, DomainError, SpeechError, TokenizerError, TrainingError, OSError):
        yield


def nano(folder: Path, of: Path | None, stages: tuple[str, ...], device: str, processes: int | None, *,
         new_ears: bool = False) -> None:
    """The whole recipe in `folder`, or the named stages of it; `of`: a model to go on from, by its ears or new ones."""
    if unknown := sorted(set(stages) - set(STAGES)):
        raise UserError(f"--stages {unknown[0]}: give some of {', '.join(STAGES)}")
    if new_ears and of is None:
        raise UserError("--new-ears: only with --of; without it all is new")
    if of is not None:
        for name in (codec.CONFIG, codec.WEIGHTS, "tokenizer.model", lm.WEIGHTS, f"stt/{stt.WEIGHTS}"):
            _there(of / name)
    with _told():
        recipe = NanoRecipe() if of is None else going_on(of, new_ears=new_ears)
        print(train_nano(folder, recipe, device=device, processes=processes, stages=stages or STAGES))


def mimi(folder: Path, calls: list[Path], held_out: Path, config: Path | None, *, steps: int, batch: int, seed: int,
         device: str, processes: int | None) -> None:
    """Train a codec in `folder`, or go on there."""
    spec = codec.CodecSpec(_config(config, MIMI), tuple(_there(listed) for listed in calls), _there(held_out),
                           batch=batch)
    plan = Plan(steps, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, final=0.05, clip=5.0, seed=seed,
                device=device, processes=processes or processes_for(device))
    with _told():
        train(codec.make_task, spec, plan, folder)
    print(folder)


def hearing_sounds(folder: Path, calls: list[Path], held_out: Path, config: Path | None, *, steps: int, batch: int,
                   seed: int, device: str, processes: int | None) -> None:
    """Train a Mimi's convolutions to hear in `folder`, or go on there."""
    spec = sounds.SoundsSpec(_config(config, MIMI), tuple(_there(listed) for listed in calls), _there(held_out),
                             batch=batch)
    plan = sounds_plan(steps, seed=seed, device=device, processes=processes or processes_for(device))
    with _told():
        train(sounds.make_task, spec, plan, folder)
    print(folder)


def listening(folder: Path, of: Path, calls: list[Path], held_out: Path, config: Path | None, *, steps: int, batch: int,
              seed: int, device: str, processes: int | None) -> None:
    """Train ears in `folder` with the convolutions of the Mimi in `of`, or go on there."""
    for name in (codec.CONFIG, codec.WEIGHTS):
        _there(of / name)
    plan = ears_plan(steps, seed=seed, device=device, processes=processes or processes_for(device))
    with _told():
        folder.mkdir(parents=True, exist_ok=True)
        train_ears(folder, _config(config, EARS), of, [_there(listed) for listed in calls], _there(held_out), plan,
                   batch=batch, unquantised_steps=min(steps // 2, EarsSpec.unquantised_steps))
    print(folder)


def tokens(out: Path, calls: list[Path], agent: Path, workers: int | None) -> None:
    """Encode calls by the codecs and the tokenizer of the checkpoint folder `agent`."""
    for name in (codec.CONFIG, codec.WEIGHTS, "tokenizer.model"):
        _there(agent / name)
    with _told():
        mimi, voice = codec.load_both(agent)
        encode_calls(calls, mimi, Tokenizer(agent / "tokenizer.model"), out, voice=voice,
                     workers=workers or processes_for("cpu"))
    print(out)


def language_model(folder: Path, calls: Path, held_out: Path, config: Path | None, ears: Path | None,
                   callers: Path | None, *, steps: int, frames: int, seed: int, device: str,
                   processes: int | None) -> None:
    """Train a language model in `folder`, or go on there; `ears`: a hearing training's folder to begin with;
    `callers`: calls in which nobody answers."""
    if ears is not None:
        _there(ears / stt.WEIGHTS)
        _there(ears / stt.MEANT)
    spec = lm.LMSpec(_config(config, LM), _there(calls), _there(held_out), None if callers is None else _there(callers),
                     frames=frames, ears=ears)
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
