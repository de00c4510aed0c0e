"""Streaming the language model is its parallel forward, past the context too, and at any age."""

from __future__ import annotations

import math

import pytest
import torch

from agent.moshi.generate import Controls, Generated, Generator, GeneratorState, _entropies, _penalise
from agent.moshi.layers import Rows
from agent.moshi.lm import LanguageModel

CPU = torch.device("cpu")


def random_codes(lm: LanguageModel, frames: int) -> torch.Tensor:
    config, generator = lm.config, torch.Generator().manual_seed(4)
    text = torch.randint(0, config.text_card, (1, 1, frames), generator=generator)
    audio = torch.randint(0, config.audio_card, (1, config.audio_streams, frames), generator=generator)
    return torch.cat([text, audio], dim=1)


def taught(lm: LanguageModel, codes: torch.Tensor, free_codebook: int) -> list[Generated]:
    """Stream with everything forced as in `codes`, but one codebook, which is left to the model."""
    config = lm.config
    generator, state, outputs = Generator(lm), GeneratorState(lm, 1, 1), []
    agent, frames = config.agent_codebooks, codes.shape[2]
    for t in range(frames):
        taken = [codes[0, 1 + k, t - delay] if t >= delay else config.audio_initial_token
                 for k, delay in enumerate(config.delays[1:1 + agent])]
        forced = torch.tensor([[-1 if k == free_codebook else int(code) for k, code in enumerate(taken)]])
        caller = codes[:, 1 + agent:, max(0, t - 1)]  # what is heard in frame 0 is never read
        controls = Controls.greedy(1, agent, CPU, codes[:, 0, t], forced.reshape(1, agent))
        with torch.inference_mode():
            outputs.append(generator.step(caller, controls, state, Rows.of([0], [t], CPU)))
        if agent:  # what was left free is to be remembered as it should have been
            state.tokens[0, 1:1 + agent, (t + 1) % state.tokens.shape[2]] = torch.tensor([int(code) for code in taken])
    return outputs


@pytest.mark.parametrize("name", ["lm", "wide"])
@pytest.mark.parametrize("codebook", [0, 3, 7])
def test_streaming_predicts_what_the_parallel_forward_does(models, name, codebook):
    lm = models[name].lm
    frames = 2 * lm.config.temporal.context + 5
    codes = random_codes(lm, frames)
    with torch.inference_mode():
        whole = lm(codes)
    outputs = taught(lm, codes, codebook)
    texts = whole.text_logits.argmax(dim=-1)[0, 0]
    assert [int(output.sampled_text[0]) for output in outputs] == texts.tolist()
    delay = lm.config.delays[1 + codebook]
    expected = whole.logits.argmax(dim=-1)[0, codebook]
    got = torch.stack([output.codes[0, codebook] for output in outputs])[delay:]
    assert torch.equal(got, expected[whole.mask[0, codebook]])


def test_at_200_000_steps_the_model_computes_what_it_does_at_the_start(models):
    lm = models["stt"].lm
    codes = random_codes(lm, 120)

    def run(first: int) -> torch.Tensor:
        generator, state, pauses = Generator(lm), GeneratorState(lm, 1, 1), []
        state.tokens.zero_()
        for t in range(120):
            controls = Controls.greedy(1, 0, CPU, codes[:, 0, t])
            with torch.inference_mode():
                pauses.append(generator.step(codes[:, 1:, t], controls, state, Rows.of([0], [first + t], CPU)).pauses)
        return torch.stack(pauses[-20:])  # long after the window of every layer has passed the start

    assert torch.allclose(run(200_000), run(0), atol=2e-6)


@pytest.mark.parametrize("name", ["lm", "stt"])
def test_in_bfloat16_the_model_says_nearly_the_same(models, name):
    lm = models[name].lm
    small = LanguageModel(lm.config)
    small.load_state_dict(lm.state_dict())
    small = small.to(torch.bfloat16)
    codes = random_codes(lm, 40)
    exact, rounded = (torch.stack([output.sampled_text for output in taught(model, codes, -1)])
                      for model in (lm, small))
    assert (exact == rounded).float().mean() > 0.85


def test_entropies_are_those_of_the_tokens_written_so_far():
    recent = torch.zeros(1, 2, 64, dtype=torch.int64)
    recent[0, 0, :4] = torch.tensor([5, 5, 6, 6])
    recent[0, 1, :4] = torch.arange(4)
    entropies = _entropies(recent, torch.tensor([4]))
    assert entropies[0].tolist() == pytest.approx([math.log(2), math.log(4)])


def test_a_penalty_lowers_recent_pieces_and_nothing_else():
    logits = torch.tensor([[2.0, 2.0, -2.0, 2.0, 2.0, 2.0]])
    recent = torch.full((1, 64), 5)  # left by an earlier call
    recent[0, :4] = torch.tensor([0, 2, 3, 4])
    penalised = _penalise(logits, recent, torch.tensor([4]), torch.tensor([4.0]))
    assert penalised.tolist() == [[2.0, 2.0, -8.0, 2.0, 0.5, 2.0]]
