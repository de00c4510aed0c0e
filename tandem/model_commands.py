"""`tandem model …`: golden cases replayed, and a conversation with a recording."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agent.engine import MoshiEngine, StepInputs
from agent.models import kv_settings, load_agent_model, set_threads
from agent.moshi.checkpoint import CheckpointError
from agent.moshi.quantised import EightBits
from agent.moshi.text import TimedWord, Tokenizer, TokenizerError, WordTimer
from agent.moshi.verify import verify
from calls.settings import Settings
from media.audio import AudioError, read_audio, write_wav
from tandem.errors import UserError, told_in_one_line

Samples = npt.NDArray[np.float32]


def verify_directory(directory: Path, device: str, dtype: str, weights: EightBits | None, kv: EightBits | None
                     ) -> bool:
    """Print a line for each golden case; True if all agree."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise UserError(f"--dtype {dtype}: give float32 or bfloat16")
    with told_in_one_line(CheckpointError):
        results = verify(directory, torch.device(device), dtypes[dtype], weights, kv)
    out = Console(highlight=False)
    for result in results:
        out.print(str(result), style=None if result.agrees else "bold red", soft_wrap=True)
    return all(result.agrees for result in results)


def run_offline(settings: Settings, play: Path, record: Path, seed: int, tail_s: float) -> None:
    """Talk with the recording `play`; write what the agent says to `record`, print its words and the speed."""
    with told_in_one_line(AudioError):
        caller = read_audio(play)
    with told_in_one_line(CheckpointError, TokenizerError):
        model = load_agent_model(settings)
        tokenizer = Tokenizer(model.tokenizer_path) if model.tokenizer_path else None
    engine = MoshiEngine(model, slots=1, kv=kv_settings(settings))
    set_threads(engine, settings)
    frames = frames_of(caller, engine.info.frame_samples, round(tail_s * engine.info.sample_rate))
    out = Console(highlight=False)
    seconds_a_frame = engine.info.frame_samples / engine.info.sample_rate

    def tell(word: TimedWord | None) -> None:
        if word is not None:
            delay = engine.info.largest_delay
            start, end = (word.first_k + delay) * seconds_a_frame, (word.last_k + 1 + delay) * seconds_a_frame
            out.print(f"{start:8.2f} {end:8.2f}  {word.text}")

    agent = np.zeros((len(frames), engine.info.frame_samples), np.float32)
    words = WordTimer()
    sampling = engine.default_sampling(1)
    sampling.seed[:] = seed
    took_s = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
               TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(settings.model_name, total=len(frames) * seconds_a_frame)
        for k, frame in enumerate(frames):
            began = time.perf_counter()
            outputs = engine.step(StepInputs.free([0], [k == 0], frame[None], engine.info, sampling))
            took_s += time.perf_counter() - began
            agent[k] = outputs.pcm[0]
            tell(words.feed(k, tokenizer.piece(int(outputs.text[0])) if tokenizer else ""))
            progress.advance(task, seconds_a_frame)
    tell(words.end())
    with told_in_one_line(AudioError):
        write_wav(record, agent.reshape(-1))
    spoken_s = len(frames) * seconds_a_frame
    out.print(f"{spoken_s:.1f} s in {took_s:.1f} s: real-time factor {took_s / spoken_s:.2f} "
              f"({1000 * took_s / len(frames):.1f} ms a frame of {1000 * seconds_a_frame:.0f} ms)")


def frames_of(samples: Samples, frame_samples: int, tail_samples: int) -> Samples:
    """[frames, frame_samples]: the signal, silence after it, filled up to whole frames; at least one."""
    length = max(1, len(samples) + tail_samples)
    frames = -(-length // frame_samples)
    padded = np.zeros(frames * frame_samples, np.float32)
    padded[:len(samples)] = samples
    return padded.reshape(frames, frame_samples)
