"""The codec's training: levels at the start, codebooks that follow, sound that comes nearer, a loadable checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vowels import make_calls, tiny, vowels

from agent.moshi.config import MimiConfig
from agent.moshi.mimi import Mimi
from agent.train import codebooks, codec
from agent.train.codec_data import read_stretches
from agent.train.codec_loss import RESOLUTIONS, SpectralLoss, mel_bands
from agent.train.dataset import DatasetError, Entry, write_call, write_list
from agent.train.phone_labels import LABELS_PER_FRAME, SILENCE
from agent.train.phones import PHONES
from agent.train.render import Call
from agent.train.speech import FRAME_SAMPLES
from agent.train.trainer import PROGRESS, Plan, Team, TrainingError, train

TEAM = Team(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calls(tmp_path_factory.mktemp("calls"))


def test_stretches_have_the_phones_that_are_spoken_in_them_a_frame_late(calls: Path) -> None:
    stretches = read_stretches([calls], 8)
    pcm, labels, agent = stretches.draw(64, torch.Generator().manual_seed(0))
    assert pcm.shape == (64, 8 * FRAME_SAMPLES)
    assert labels.shape == (64, 8 * LABELS_PER_FRAME)
    assert 16 < int(agent.sum()) < 48
    halves = pcm.unflatten(1, (-1, FRAME_SAMPLES // LABELS_PER_FRAME)).square().mean(2).sqrt()
    # where a label says speech, there is sound; at its edges a half frame may be cut
    heard, told = halves[:, :-LABELS_PER_FRAME], labels[:, LABELS_PER_FRAME:]
    assert (heard[told != SILENCE] > 0.01).float().mean() > 0.99
    assert (heard[told == SILENCE] < 0.06).float().mean() > 0.9
    assert set(labels.unique().tolist()) == {SILENCE, *(1 + PHONES.index(phone) for phone in ("aa", "iy", "ow"))}
    begins = (halves[agent] > 0.01).float().diff(dim=1).eq(1).nonzero()[:, 1] + 1
    assert (begins % LABELS_PER_FRAME == 0).all(), "the agent speaks on frame borders"


def test_varied_stretches_have_their_labels_where_the_sound_is(calls: Path) -> None:
    stretches = read_stretches([calls], 8, agent_share=0.0, tempo=1.5)
    pcm, labels, _ = stretches.draw(64, torch.Generator().manual_seed(0))
    halves = pcm.unflatten(1, (-1, FRAME_SAMPLES // LABELS_PER_FRAME)).square().mean(2).sqrt()
    loud = halves.amax(1)
    assert loud.max() > 2 * loud[loud > 0].min(), "at another level each"
    heard, told = halves[:, :-LABELS_PER_FRAME] / loud[:, None].clamp(min=1e-6), labels[:, LABELS_PER_FRAME:]
    assert (heard[told != SILENCE] > 0.1).float().mean() > 0.97
    assert (heard[told == SILENCE] < 0.6).float().mean() > 0.85


def test_the_same_seed_draws_the_same(calls: Path) -> None:
    stretches = read_stretches([calls], 8)
    one, two = (stretches.draw(4, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_calls_without_phonemes_are_refused(tmp_path: Path) -> None:
    sound = np.zeros(5 * FRAME_SAMPLES, np.float32)
    write_call(tmp_path / "0.wav", Call(sound, sound, (), (), (), ()), {})
    write_list(tmp_path / "calls.jsonl", [Entry(tmp_path / "0.wav", 0.4)])
    with pytest.raises(DatasetError, match=r"0\.wav: has no phonemes"):
        read_stretches([tmp_path / "calls.jsonl"], 4)


@pytest.mark.parametrize(("window", "bands"), [(window, bands) for window, _, bands in RESOLUTIONS])
def test_mel_bands_are_means_of_neighbouring_bins(window: int, bands: int) -> None:
    matrix = mel_bands(window, bands)
    assert matrix.shape == (window // 2 + 1, bands)
    assert torch.allclose(matrix.sum(0), torch.ones(bands), atol=1e-5)
    centres = (matrix * torch.arange(window // 2 + 1)[:, None]).sum(0)
    assert (centres.diff() > 0).float().mean() > 0.97  # the lowest may share a bin


def test_the_loss_knows_what_is_nearer() -> None:
    loss, ones = SpectralLoss(), torch.ones(1)
    sound = torch.from_numpy(vowels(10, 150))[None]
    noise = 0.001 * torch.randn(sound.shape, generator=torch.Generator().manual_seed(0))
    same, near, far = (float(loss(other, sound, ones)[0]) for other in (sound, sound + noise, torch.zeros_like(sound)))
    assert same < 1e-6 < near < far


def test_an_untrained_codec_passes_sound_at_an_even_level(calls: Path) -> None:
    mimi, generator = Mimi(MimiConfig.from_dict(tiny())), torch.Generator().manual_seed(0)
    pcm = read_stretches([calls], 10).draw(16, generator).pcm
    codec.initialise(mimi, pcm, generator)
    latents = mimi.latents(pcm)
    assert 0.5 < float(latents.std()) < 2
    decoded = mimi.sound(codebooks.unquantised(mimi.quantizer, latents)[0])
    assert 0.01 < float(decoded.std()) < 0.1


def test_codebooks_begin_at_the_latents_and_follow_them() -> None:
    mimi, generator = Mimi(MimiConfig.from_dict(tiny())), torch.Generator().manual_seed(0)
    codec.initialise(mimi, 0.1 * torch.randn(4, 10 * FRAME_SAMPLES, generator=generator), generator)
    quantizer = mimi.quantizer
    latents = torch.randn(600, tiny()["seanet"]["dimension"], generator=generator)
    codebooks.begin(quantizer, latents, TEAM, generator)
    used = torch.full((6,), 3)

    def distance(x: torch.Tensor, step: int) -> float:
        return float(codebooks.quantised(quantizer, x.view(6, 100, -1), used,
                                          codebooks.Following(step, TEAM, generator))[2])

    first, random = distance(latents, 1), float(latents.var())
    assert first < 0.5 * random
    moved = latents + 3
    far = distance(moved, 2)
    nearer = [distance(moved, step) for step in range(3, 120)][-1]
    assert nearer < 0.5 * far


def test_gradients_pass_through_the_codebooks() -> None:
    mimi, generator = Mimi(MimiConfig.from_dict(tiny())), torch.Generator().manual_seed(0)
    codec.initialise(mimi, 0.1 * torch.randn(4, 10 * FRAME_SAMPLES, generator=generator), generator)
    latents = torch.randn(2, 30, tiny()["seanet"]["dimension"], generator=generator, requires_grad=True)
    codebooks.begin(mimi.quantizer, latents.detach().flatten(0, 1), TEAM, generator)
    codes = mimi.quantizer.encode(latents, 4)
    whole, semantic = mimi.quantizer.decode(codes), mimi.quantizer.rvq_first.decode(codes[..., :1])
    out, first, _ = codebooks.quantised(mimi.quantizer, latents, torch.tensor([1, 3]),
                                        codebooks.Following(1, TEAM, generator))
    assert torch.allclose(out[1], whole[1], atol=1e-4), "with all codebooks it is what the model makes of the codes"
    assert not torch.allclose(out[0], whole[0], atol=1e-4), "with one it isn't"
    assert torch.allclose(first, semantic, atol=1e-4)
    out.sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min(-1).values.max() > 0


def test_training_brings_the_sound_nearer(calls: Path, tmp_path: Path) -> None:
    spec = codec.CodecSpec(tiny(), (calls,), calls, batch=4, frames=6, unquantised_steps=25)
    plan = Plan(steps=60, learning_rate=2e-3, betas=(0.9, 0.99), warmup=5, clip=5.0, log_every=10, evaluate_every=60,
                save_every=60)
    train(codec.make_task, spec, plan, tmp_path, lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / PROGRESS).read_text().splitlines()]
    assert lines[-2]["spectral"] < 0.7 * lines[0]["spectral"]
    assert lines[-2]["phonemes"] > 0.5
    loaded = Mimi(MimiConfig.from_dict(json.loads((tmp_path / codec.CONFIG).read_text())))
    loaded.load_state_dict(load_file(tmp_path / codec.WEIGHTS))
    pcm = read_stretches([calls], 6, agent_share=1.0).draw(4, torch.Generator().manual_seed(0)).pcm
    with torch.no_grad():
        decoded = loaded.decode(loaded.encode(pcm, 4))
    silence = torch.zeros_like(pcm)
    loss, weights = SpectralLoss(), torch.ones(4)
    assert loss(decoded, pcm, weights)[0] < 0.9 * loss(silence, pcm, weights)[0]


def test_a_folder_without_a_codec_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no whole Mimi"):
        codec.load_codec(tmp_path)
