from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.engine import MoshiEngine, StepInputs
from agent.moshi.checkpoint import load_model
from agent.moshi.random_model import PEAK, make_random_model
from agent.moshi.text import PAD, Tokenizer, WordTimer

FRAMES = 120


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / "random"
    make_random_model(path)
    return path


def test_it_says_words_between_pauses_in_an_audible_and_bounded_voice(path: Path) -> None:
    model = load_model(path)
    assert model.tokenizer_path is not None
    tokenizer, timer = Tokenizer(model.tokenizer_path), WordTimer()
    engine = MoshiEngine(model, slots=1)
    words, tokens, pcm = [], [], []
    for k in range(FRAMES):
        outputs = engine.step(StepInputs.free([0], [k == 0], np.zeros((1, 1920), np.float32), engine.info,
                                              engine.default_sampling(1)))
        tokens.append(int(outputs.text[0]))
        pcm.append(outputs.pcm[0])
        word = timer.feed(k, tokenizer.piece(tokens[-1]))
        words += [word.text] if word else []
    assert len(words) >= 5
    assert 0.3 < tokens.count(PAD) / FRAMES < 0.95
    sound = np.concatenate(pcm)
    assert np.sqrt(np.mean(sound[24000:] ** 2)) > 0.01  # -40 dB of full scale
    assert np.abs(sound).max() < 2 * PEAK <= 1.0


def test_the_same_seed_makes_the_same_weights(path: Path, tmp_path: Path) -> None:
    make_random_model(tmp_path / "again")
    for name in ("model.safetensors", "mimi.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (path / name).read_bytes()


def test_a_model_that_is_there_isnt_touched_and_nothing_half_made_stays(path: Path) -> None:
    before = (path / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OSError, match="not empty"):
        make_random_model(path)
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    assert [entry.name for entry in path.parent.iterdir()] == ["random"]
