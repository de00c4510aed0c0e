"""Training what hears callers: convolutions that tell phones, then ears that put words and meaning into codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vowels import make_calls, tiny

from agent.train import codec, ears, sounds
from agent.train.codec_data import read_stretches
from agent.train.dataset import DatasetError, read_call
from agent.train.heard import NO_INTENT, Heard, hear_calls, vocabulary_of
from agent.train.nano import train_ears
from agent.train.trainer import PROGRESS, Plan, Team, TrainingError, train

PLAN = Plan(steps=60, learning_rate=2e-3, betas=(0.9, 0.98), warmup=5, clip=3.0, log_every=10, evaluate_every=60,
            save_every=60)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calls(tmp_path_factory.mktemp("calls"))


@pytest.fixture(scope="module")
def convolutions(calls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mimi's folder that has learnt to tell phones a little."""
    folder = tmp_path_factory.mktemp("sounds")
    train(sounds.make_task, sounds.SoundsSpec(tiny(), (calls,), calls, batch=8, frames=6), PLAN, folder, lambda _: None)
    return folder


@pytest.fixture(scope="module")
def heard(calls: Path, convolutions: Path) -> Heard:
    hear_calls([calls], convolutions, vocabulary_of([calls]), convolutions / "heard.safetensors")
    return Heard.open(convolutions / "heard.safetensors")


def progress(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / PROGRESS).read_text().splitlines()]


def test_convolutions_learn_to_tell_phones(convolutions: Path) -> None:
    first, *_, last, held_out = progress(convolutions)
    for name in ("positions", "frames"):
        assert last[name] > max(0.6, first[name])
        assert held_out[name] > 0.6  # here the calls are those that it learnt from


def test_digital_silence_does_not_blow_the_gradient_up(calls: Path) -> None:
    task = sounds._SoundsTask(Team(0, 1, torch.device("cpu")),
                              sounds.SoundsSpec(tiny(), (calls,), calls, batch=4, frames=6))
    for track in task.calls.tracks["caller"]:
        track.begins[:] = track.ends[:] = 0  # where nobody speaks
    loss, _ = task.loss(0, torch.Generator().manual_seed(0))
    loss.backward()
    norms = [float(weight.grad.norm()) for weight in task.module.parameters() if weight.grad is not None]
    assert np.isfinite(norms).all()
    assert max(norms) < 1e3


def test_callers_are_heard_as_the_codec_hears_them_with_labels_in_their_time(
        calls: Path, convolutions: Path, heard: Heard) -> None:
    mimi, call = codec.load_codec(convolutions), read_call(calls.parent / "0.wav")
    with torch.no_grad():
        expected = mimi.convolved(torch.from_numpy(call.caller)[None])[0]
        assert torch.allclose(mimi.latents(torch.from_numpy(call.caller)[None]),
                              mimi.frames(mimi.heard(expected[None])))
    speech = slice(40, 60)  # positions; in silence it is the dither that is heard
    assert float((heard.convolved[speech].float() - expected[speech]).abs().max()) < 0.05 * float(expected.abs().max())
    phones, words = heard.phones.view(3, 80), heard.words.view(3, 40)
    assert phones[:, :40].eq(0).all()
    assert len({int(row) for row in phones[:, 46]}) == 3, "each of them another vowel"
    assert words[:, :23].eq(0).all()  # the word begins in frame 20.4 and is told 0.32 s late
    assert words[:, 26:34].eq(2).all()
    assert heard.intent.eq(NO_INTENT).all()
    drawn = heard.draw(5, 10, torch.Generator().manual_seed(0))
    assert [part.shape[:2] for part in drawn] == [(5, 20), (5, 20), (5, 10), (5, 10)]


def test_a_file_that_holds_no_callers_is_named(tmp_path: Path) -> None:
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"none\.safetensors: not a file of heard callers"):
        Heard.open(tmp_path / "none.safetensors")


def test_ears_are_taught_phones_and_words_and_put_them_into_codes(
        calls: Path, convolutions: Path, tmp_path: Path) -> None:
    plan = Plan(steps=120, learning_rate=2e-3, betas=(0.9, 0.98), warmup=5, clip=3.0, log_every=10,
                evaluate_every=120, save_every=120)
    train_ears(tmp_path, tiny(), convolutions, [calls], calls, plan, lambda _: None, batch=8, frames=12,
               unquantised_steps=30)
    *trained, held_out = progress(tmp_path)
    for name in ("phones_in_positions", "phones_in_latents", "words_in_latents"):
        assert trained[-1][name] > max(0.7, trained[0][name])
    for name in ("phones_first", "phones", "words"):
        assert name not in trained[0], "there are no codes at first"
        assert held_out[name] > 0.6  # here the calls are those that it learnt from
    mimi = codec.load_codec(tmp_path)
    pcm = read_stretches([calls], 6, agent_share=0.0).draw(16, torch.Generator().manual_seed(3)).pcm
    with torch.no_grad():
        codes = mimi.encode(pcm, 4)
    assert len(codes[:, 0].unique()) >= 4, "three vowels and silence"
    books = load_file(tmp_path / codec.WEIGHTS)
    assert books["quantizer.rvq_first.vq.layers.0._codebook._initialized"].item() == 1
    kept, first = load_file(convolutions / codec.WEIGHTS), "encoder.model.0.conv.conv.weight"
    assert torch.equal(kept[first], books[first])


def test_convolutions_of_another_shape_are_refused(convolutions: Path, heard: Heard) -> None:
    config = tiny()
    config["seanet"]["n_filters"] = 6
    file = convolutions / "heard.safetensors"
    with pytest.raises(TrainingError, match=r"its convolutions aren't those of the ears' config \(encoder\.model\.0"):
        ears.make_task(Team(0, 1, torch.device("cpu")), ears.EarsSpec(config, convolutions, file, file))


def test_meaning_is_asked_for_after_a_line_alone(convolutions: Path, heard: Heard) -> None:
    spec = ears.EarsSpec(tiny(), convolutions, convolutions / "heard.safetensors",
                         convolutions / "heard.safetensors", batch=4, frames=12)
    task = ears._EarsTask(Team(0, 1, torch.device("cpu")), spec)
    drawn = heard.draw(4, 12, torch.Generator().manual_seed(0))
    latents = torch.randn(4, 12, task.mimi.config.dimension)
    silent, _ = task._asked({"meant": (latents, drawn.intent)})
    assert float(silent["meant"].detach()) == 0
    drawn.intent[2, 5:] = 7
    asked, _ = task._asked({"meant": (latents, drawn.intent)})
    expected = -task.heads["meant"](latents[2, 5:]).log_softmax(-1)[:, 7].mean()
    assert float(asked["meant"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
