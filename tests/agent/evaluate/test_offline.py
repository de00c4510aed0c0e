"""Callers against the real engine, with a tiny model of random weights: no answer is right, but all of it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_fakes import WORDS, FakeEngine, Nature, speak

from agent.engine import MoshiEngine
from agent.evaluate import caller
from agent.evaluate.offline import EvaluationError, converse
from agent.evaluate.rows import ROWS, cast, judge
from agent.moshi.checkpoint import Model, load_model
from agent.moshi.random_model import make_random_model
from agent.moshi.text import Tokenizer
from agent.train.domain.reader import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "random"
    make_random_model(path)
    return load_model(path)


@pytest.fixture(autouse=True)
def short_calls_on_one_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caller, "LONGEST_CALL_S", 1.6)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_random_model_is_talked_with_and_the_same_seed_says_the_same(model: Model) -> None:
    assert model.tokenizer_path is not None
    tokenizer = Tokenizer(Path(model.tokenizer_path))
    heard, words = [], []
    for _ in range(2):
        dialogues = cast(ROWS["voices"], 9, 5, load(), speak)
        converse(MoshiEngine(model, slots=2), tokenizer, dialogues)
        tracks = [dialogue.heard for dialogue in dialogues]
        assert all(track is not None and track.duration_s == pytest.approx(1.6, abs=0.1) for track in tracks)
        heard.append([track.sound for track in tracks if track])
        words.append([dialogue.caller.words for dialogue in dialogues])
        assert all(judge(dialogue, ()) == [] for dialogue in dialogues)
    assert words[0] == words[1]
    assert any(words[0])
    for one, other in zip(*heard, strict=True):
        assert np.array_equal(one, other)
        assert one.any()
    assert not np.array_equal(heard[0][0], heard[0][1]), "each dialogue has a seed of its own"


def test_a_model_of_another_rate_is_refused_in_a_line() -> None:
    dialogues = cast(ROWS["voices"], 1, 5, load(), speak)
    engine = FakeEngine(dialogues, Nature())
    engine.info = replace(engine.info, sample_rate=16000, frame_samples=1280)
    with pytest.raises(EvaluationError, match="1280 samples at 16000 Hz, not of 1920 at 24000 Hz"):
        converse(engine, WORDS, dialogues)
