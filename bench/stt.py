"""The caller's words by nano's speech-to-text: how many are heard wrong over the phone, and what it costs.

Calls are made anew: scripts that training never saw, in voices of each split, all over G.711 with the gain, noise,
babble, echo and packet loss of training's phone calls. The sound is encoded by the agent's Mimi and transcribed frame
by frame. Cost is the processor time of one thread for the agent's whole step and the transcriber's, past the longest
context.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from agent.engine import MoshiEngine, StepInputs
from agent.moshi.checkpoint import Model, load_model
from agent.moshi.stages import bucket_of
from agent.moshi.text import Tokenizer
from agent.moshi.transcribe import Transcriber, lag_frames, transcribe
from agent.train.dataset import read_call, read_list
from agent.train.dialogues import evaluation_script, training_script
from agent.train.produce import Recipe, make_calls
from agent.train.render import Call
from agent.train.script import Script
from agent.train.voices import Split
from agent.train.words import WordErrors

NANO = Path(__file__).parents[1] / "models" / "nano"
CALLS = 20  # of each kind
TOGETHER = 4  # calls that are transcribed at once
NEVER_SEEN = 50_000_000  # scripts from this seed on are none of training's

KINDS: list[tuple[str, Split, Callable[[int], Script]]] = [
    ("held-out voices, training's phrasings", "held_out_voices", training_script),
    ("held-out voices, held-out phrasings", "held_out_voices", evaluation_script),
    ("held-out family, training's phrasings", "held_out_family", training_script),
    ("training's voices and phrasings, calls never heard", "training", training_script),
]


def _word_errors(agent: Model, stt: Model, calls: list[Call]) -> WordErrors:
    assert stt.tokenizer_path is not None
    codebooks = stt.lm.config.caller_codebooks
    with torch.inference_mode():
        codes = [agent.mimi.encode(torch.from_numpy(call.caller)[None], codebooks)[0] for call in calls]
    transcribed = transcribe(Transcriber(stt.lm, TOGETHER), Tokenizer(stt.tokenizer_path), lag_frames(stt), codes)
    total = WordErrors()
    for call, words in zip(calls, transcribed, strict=True):
        said = " ".join(word.text for word in call.words if word.speaker == "caller")
        total += WordErrors.of(said, " ".join(word.text for word in words))
    return total


def _quality(agent: Model, stt: Model, folder: Path) -> list[str]:
    rows = []
    for number, (name, split, script) in enumerate(KINDS):
        scripts = [script(NEVER_SEEN + i) for i in range(CALLS)]
        recipe = Recipe(NEVER_SEEN + number, split, band="phone")
        listed = make_calls(folder / str(number), scripts, recipe, workers=os.cpu_count() or 1)
        heard = _word_errors(agent, stt, [read_call(entry.path) for entry in read_list(listed)])
        rows.append(f"| {name} | {heard.words} | {heard.errors} | {100 * heard.rate:.1f} % |")
    return [f"{CALLS} calls of a kind over G.711, words late by {lag_frames(stt)} frames.", "",
            "| the caller's words | said | heard wrong | word error rate |", "|---|---|---|---|", *rows]


def _speed(agent: Model, stt: Model, calls: int) -> str:
    """A row of the table: milliseconds a step of so many calls, past the context, and the real-time factor."""
    engine, transcriber = MoshiEngine(agent, calls), Transcriber(stt.lm, calls)
    slots, info = list(range(calls)), engine.info
    sampling = engine.default_sampling(calls)
    draw = np.random.default_rng(0)
    agents, transcribers = [], []
    for k in range(info.context + 100):
        pcm = 0.05 * draw.standard_normal((calls, info.frame_samples)).astype(np.float32)
        fresh = [k == 0] * calls
        began = time.thread_time()
        outputs = engine.step(StepInputs.free(slots, fresh, pcm, info, sampling))
        stepped = time.thread_time()
        codes = torch.zeros(bucket_of(calls), outputs.caller_codes.shape[1], dtype=torch.int64)
        codes[:calls] = torch.from_numpy(outputs.caller_codes)
        transcriber.step(slots, fresh, codes).text.tolist()
        if k >= info.context:
            agents.append(1000 * (stepped - began))
            transcribers.append(1000 * (time.thread_time() - stepped))
    both = statistics.median(one + other for one, other in zip(agents, transcribers, strict=True))
    factor = both * info.sample_rate / info.frame_samples / 1000
    return (f"| {calls} | {statistics.median(agents):.1f} | {statistics.median(transcribers):.1f} | {both:.1f} | "
            f"{factor:.2f} |")


def run() -> list[str]:
    """The lines for RESULTS.md."""
    if not NANO.is_dir():
        return ["Left out: there is no models/nano yet."]
    torch.set_num_threads(1)
    agent, stt = (load_model(folder, dtype=torch.float32) for folder in (NANO, NANO / "stt"))
    with tempfile.TemporaryDirectory() as folder:
        quality = _quality(agent, stt, Path(folder))
    return [*quality, "", f"On one thread, {agent.lm.config.temporal.context} frames of context filled, medians:", "",
            "| calls at once | agent, ms a step | speech-to-text, ms | both | real-time factor |",
            "|---|---|---|---|---|", *(_speed(agent, stt, calls) for calls in (1, 4))]
