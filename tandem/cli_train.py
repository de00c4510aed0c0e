"""The command line's group `train`: data, codec, language models, fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

train = typer.Typer(help="Teach a small Moshi.", no_args_is_help=True, rich_markup_mode=None)


@train.command("data")
def train_data(
    folder: Annotated[Path, typer.Argument(help="where the calls go; what is there already is kept")],
    calls: Annotated[int, typer.Option(min=1, max=100_000, help="how many")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="the same seed makes the same calls")] = 0,
    split: Annotated[str, typer.Option(help="training, or held-out voices or family with held-out phrasings")]
        = "training",
    callers: Annotated[bool, typer.Option("--callers-only", help="nobody answers: more to hear in a minute")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="processes; default: one a core")] = None,
) -> None:
    """Make calls of the restaurant's reception in the public fine-tuning format: stereo WAV, JSONL, word times."""
    from tandem.train_data_command import make_data

    make_data(folder, calls, seed, split, workers, callers_only=callers)


_Calls = Annotated[list[Path], typer.Option(help="list of calls to learn from, a .jsonl; may be given again")]
_HeldOut = Annotated[Path, typer.Option(help="list of calls to judge by")]
_Steps = Annotated[int, typer.Option(min=1, max=1_000_000)]
_Seed = Annotated[int, typer.Option(min=0)]
_Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
_Processes = Annotated[int | None, typer.Option(min=1, max=64, help="default: one a core, on a GPU one")]


@train.command("nano")
def train_nano(
    folder: Annotated[Path, typer.Argument(help="where all of it goes; what is there already is kept, gone on with")],
    of: Annotated[Path | None, typer.Option(help="a small model to go on from, as models/nano: its codec stays, the "
                                            "language models go on learning")] = None,
    new_ears: Annotated[bool, typer.Option(help="with --of: new ears, which go on from its own")] = False,
    stages: Annotated[str, typer.Option(
        help="some of data, codec, sounds, ears, tokens, hearing, lm, stt, with commas; default: all"
    )] = "",
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Train the small Moshi of models/nano from nothing: calls, codec, language model, speech-to-text."""
    from tandem import train_nano_command

    wanted = tuple(stage.strip() for stage in stages.split(",") if stage.strip())
    train_nano_command.nano(folder, of, wanted, device, processes, new_ears=new_ears)


@train.command("mimi")
def train_mimi(
    folder: Annotated[Path, typer.Argument(help="where the codec goes; a training that is there goes on")],
    calls: _Calls,
    held_out: _HeldOut,
    config: Annotated[Path | None, typer.Option(help="a mimi_config.json; default: nano's")] = None,
    steps: _Steps = 5500,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="stretches of 2 s in a step")] = 4,
    seed: _Seed = 0,
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Teach a codec: Mimi, its first codebook by phonemes."""
    from tandem import train_nano_command

    train_nano_command.mimi(folder, calls, held_out, config, steps=steps, batch=batch, seed=seed, device=device,
                            processes=processes)


@train.command("sounds")
def train_sounds(
    folder: Annotated[Path, typer.Argument(help="where the Mimi goes; a training that is there goes on")],
    calls: _Calls,
    held_out: _HeldOut,
    config: Annotated[Path | None, typer.Option(help="a mimi_config.json; default: nano's")] = None,
    steps: _Steps = 5000,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="stretches of 4 s in a step")] = 16,
    seed: _Seed = 0,
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Teach a Mimi's convolutions to tell phones: ears begin with them."""
    from tandem import train_nano_command

    train_nano_command.hearing_sounds(folder, calls, held_out, config, steps=steps, batch=batch, seed=seed,
                                      device=device, processes=processes)


@train.command("ears")
def train_ears(
    folder: Annotated[Path, typer.Argument(help="where the ears go; a training that is there goes on")],
    of: Annotated[Path, typer.Option(help="folder of a Mimi whose convolutions hear, as of `train sounds`; from "
                                     "ears of this shape all is taken")],
    calls: _Calls,
    held_out: _HeldOut,
    config: Annotated[Path | None, typer.Option(help="a mimi_config.json; default: that of nano's ears")] = None,
    steps: _Steps = 8000,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="stretches of 5 s in a step")] = 32,
    seed: _Seed = 0,
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Teach a Mimi to hear: its codes tell phones, words and meaning; what it says is another codec's."""
    from tandem import train_nano_command

    train_nano_command.listening(folder, of, calls, held_out, config, steps=steps, batch=batch, seed=seed,
                                 device=device, processes=processes)


@train.command("tokens")
def train_tokens(
    out: Annotated[Path, typer.Argument(help="the file to write, a .safetensors")],
    calls: Annotated[list[Path], typer.Argument(help="lists of calls, .jsonl")],
    agent: Annotated[Path, typer.Option(help="the checkpoint folder whose Mimi and tokenizer encode them")],
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="processes; default: one a core")] = None,
) -> None:
    """Encode calls as the language models read them."""
    from tandem import train_nano_command

    train_nano_command.tokens(out, calls, agent, workers)


@train.command("lm")
def train_lm(
    folder: Annotated[Path, typer.Argument(help="where the model goes; a training that is there goes on")],
    calls: Annotated[Path, typer.Option(help="encoded calls to learn from")],
    held_out: Annotated[Path, typer.Option(help="encoded calls to judge by")],
    config: Annotated[Path | None, typer.Option(help="a config.json; default: nano's")] = None,
    ears: Annotated[Path | None, typer.Option(help="folder of a hearing training to begin with")] = None,
    callers: Annotated[Path | None, typer.Option(help="encoded callers alone, to hear more of")] = None,
    steps: _Steps = 2900,
    frames: Annotated[int, typer.Option(min=300, max=1_000_000, help="in a step")] = 3072,
    seed: _Seed = 0,
    device: _Device = "cpu",
    processes: _Processes = None,
) -> None:
    """Teach a language model: both streams of sound and the inner monologue, on whole calls."""
    from tandem import train_nano_command

    train_nano_command.language_model(folder, calls, held_out, config, ears, callers, steps=steps, frames=frames,
                                      seed=seed, device=device, processes=processes)


@train.command("curves")
def train_curves(
    folder: Annotated[Path, typer.Argument(help="of a training")],
    out: Annotated[Path, typer.Argument(help="the picture, .png or .svg")],
) -> None:
    """Draw the curves of a training, whole or still running."""
    from tandem import train_nano_command

    train_nano_command.curves(folder, out)


@train.command("stt")
def train_stt(
    folder: Annotated[Path, typer.Argument(help="where the model goes; a training that is there goes on")],
    calls: Annotated[list[Path], typer.Option(help="encoded calls to learn from; may be given again")],
    held_out: Annotated[Path, typer.Option(help="encoded calls to judge by")],
    agent: Annotated[Path, typer.Option(help="the checkpoint folder whose Mimi and tokenizer encoded them")],
    steps: _Steps = 2400,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="windows of 20 s in a step")] = 8,
    dim: Annotated[int, typer.Option(min=16, max=4096, help="of the model: a multiple of 16")] = 256,
    delay: Annotated[float, typer.Option(min=0.08, max=5, help="seconds that words come late")] = 0.5,
    processes: _Processes = None,
    device: _Device = "cpu",
    seed: _Seed = 0,
) -> None:
    """Teach speech-to-text: the caller's words and pauses, on the codes that the agent hears."""
    from tandem import train_stt_command

    train_stt_command.train_stt(folder, calls, held_out, agent, steps=steps, batch=batch, dim=dim, delay_s=delay,
                                processes=processes, device=device, seed=seed)


@train.command("lora")
def train_lora(
    model: Annotated[str, typer.Argument(help="the checkpoint: `moshiko`, `moshika`, a folder, a repository")],
    calls: Annotated[Path, typer.Argument(help="list of stereo calls with word times, a .jsonl")],
    folder: Annotated[Path, typer.Argument(help="where the tuned model goes; a training that is there goes on")],
    held_out: Annotated[Path | None, typer.Option(help="list of calls to judge by; default: each tenth call")] = None,
    rank: Annotated[int, typer.Option(min=1, max=4096, help="of the adapters")] = 128,
    scaling: Annotated[float, typer.Option(min=0.01, max=100, help="of what the adapters add")] = 2.0,
    ft_embed: Annotated[bool, typer.Option("--ft-embed", help="train the embeddings too, as a whole")] = False,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1, help="at its highest")] = 2e-6,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000)] = 2000,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="windows in a step")] = 16,
    window: Annotated[float, typer.Option(min=1, max=600, help="seconds of a window")] = 100.0,
    at_once: Annotated[int, typer.Option(min=1, max=4096, help="windows kept in memory together; where that is "
                                         "the whole batch, a step takes a third less time")] = 1,
    copies: Annotated[int, typer.Option(min=1, max=100, help="of each call: itself, and its caller over other "
                                        "phone lines")] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, max=64, help="default: one a core, on a GPU one")] = None,
) -> None:
    """Fine-tune any checkpoint with low-rank adapters, from calls in the public fine-tuning format."""
    from tandem import train_lora_command

    train_lora_command.train_lora(
        model, calls, folder, held_out, rank=rank, scaling=scaling, ft_embed=ft_embed, learning_rate=learning_rate,
        steps=steps, batch=batch, window_s=window, at_once=at_once, copies=copies, seed=seed, device=device,
        processes=processes)
