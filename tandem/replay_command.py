"""`tandem call replay`: a call again, from its token log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.engine import MoshiEngine
from agent.models import load_agent_model, set_threads
from agent.moshi.checkpoint import CheckpointError
from agent.moshi.text import TimedWord, Tokenizer, TokenizerError, WordTimer
from agent.replay import Hand, ReplayError, WhatIf, replay
from calls.settings import PREFIX, Settings
from media.audio import FRAME_S, AudioError, write_wav
from media.token_log import TokenLogError, read_token_log, token_log_path
from tandem.errors import UserError, told_in_one_line


def replay_call(settings: Settings, call_id: str, out: Path, what_if_s: float | None, hand: Hand, seed: int,
                text_temperature: float | None, pad_bias: float) -> None:
    """Write the agent's sound of a call to `out` (a WAV that begins with the call's answer) and print its words; from
    `what_if_s` on with other draws, or with an operator's hand."""
    if what_if_s is None and hand is not Hand.NONE:
        raise UserError(f"--{hand}: say from when on, with --what-if SECOND")
    path = token_log_path(settings.data_dir, call_id)
    if not path.exists():
        raise UserError(f"there is no token log of a call {call_id} in {path.parent}")
    with told_in_one_line(TokenLogError, CheckpointError, TokenizerError):
        header, rows = read_token_log(path)
        if header.model != settings.model_name:
            raise UserError(f"{path}: is of a call with {header.model}, not with {settings.model_name}: set "
                            f"{PREFIX}MODEL")
        model = load_agent_model(settings)
        tokenizer = Tokenizer(model.tokenizer_path) if model.tokenizer_path else None
    engine = MoshiEngine(model, slots=1)
    set_threads(engine, settings)
    what_if = None
    if what_if_s is not None:
        sampling = engine.default_sampling(1)
        sampling.seed[:], sampling.pad_bias[:] = seed, pad_bias
        if text_temperature is not None:
            sampling.text_temperature[:] = text_temperature
        what_if = WhatIf(round(what_if_s / FRAME_S), sampling, hand)
    steps, words, timer = list(rows), list[TimedWord | None](), WordTimer()
    sound = np.zeros(((steps[-1].k + 1 if steps else 0), engine.info.frame_samples), np.float32)
    with told_in_one_line(ReplayError):
        for frame in replay(engine, steps, what_if):
            sound[frame.k] = frame.pcm
            words.append(timer.feed(frame.k, tokenizer.piece(frame.text) if tokenizer else ""))
    for word in (*words, timer.end()):
        if word is not None:
            begin_s = (word.first_k + engine.info.largest_delay) * FRAME_S
            print(f"{begin_s:8.2f}  {'*' if what_if and word.first_k >= what_if.first_k else ' '} {word.text}")
    with told_in_one_line(AudioError):
        write_wav(out, sound.reshape(-1))
