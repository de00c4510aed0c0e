"""A slot that is rebuilt from a call's history, on small golden checkpoints and nano."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import poison, sound

from agent.engine import MoshiEngine, StepInputs, StepOutputs
from agent.moshi.checkpoint import Model
from agent.moshi.config import PAD_TOKEN
from agent.moshi.generate import Generator
from agent.moshi.layers import linear
from agent.step import Past


def _past(inputs: list[StepInputs], outputs: list[StepOutputs], heard: int) -> Past:
    """What one slot went through, as a token log keeps it."""
    return Past(
        text=np.concatenate([out.text for out in outputs]),
        agent_codes=np.concatenate([out.agent_codes for out in outputs]).T,
        caller_codes=np.concatenate([out.caller_codes for out in outputs]).T,
        caller_text=np.concatenate([out.caller_text for out in outputs]),
        heard=np.concatenate([each.pcm for each in inputs])[max(0, len(inputs) - heard):],
        missed=np.zeros((0, 1920), np.float32))


def _greedy(engine: MoshiEngine, pcm: np.ndarray, slot: int, *, fresh: bool) -> StepInputs:
    inputs = StepInputs.free([slot], [fresh], pcm[None], engine.info, engine.default_sampling(1))
    inputs.sampling.text_temperature[:] = inputs.sampling.audio_temperature[:] = 0
    return inputs


@pytest.mark.parametrize(("name", "before"), [("lm", 1), ("lm", 2), ("lm", 90), ("wide", 90), ("stt", 90)])
def test_a_slot_that_is_rebuilt_from_its_history_goes_on_as_if_it_had_never_moved(
        models: dict[str, Model], name: str, before: int) -> None:
    here, there = MoshiEngine(models[name], 2), MoshiEngine(models[name], 2)
    rng = np.random.default_rng(7)
    poison(there, [0, 1, 2])
    inputs = [_greedy(here, pcm, 0, fresh=k == 0) for k, pcm in enumerate(sound(rng, before))]
    past = _past(inputs, [here.step(each) for each in inputs], heard=before)
    there.rebuild(1, past)
    for pcm in sound(rng, 40):
        stayed, moved = here.step(_greedy(here, pcm, 0, fresh=False)), there.step(_greedy(there, pcm, 1, fresh=False))
        for what in ("text", "sampled_text", "agent_codes", "caller_codes"):
            assert np.array_equal(getattr(stayed, what), getattr(moved, what)), what
        assert np.allclose(stayed.pcm, moved.pcm, atol=1e-4)
        assert np.allclose(stayed.text_entropy, moved.text_entropy, atol=1e-5)


def test_what_was_missed_on_the_way_is_heard_by_an_agent_that_was_silent(nano: tuple[Model, Model]) -> None:
    agent, stt = nano
    here, there = MoshiEngine(agent, 1, stt), MoshiEngine(agent, 1, stt)
    rng = np.random.default_rng(11)
    inputs = [_greedy(here, pcm, 0, fresh=k == 0) for k, pcm in enumerate(sound(rng, 60))]
    outputs = [here.step(each) for each in inputs]
    missed = sound(rng, 8)
    there.rebuild(0, replace(_past(inputs, outputs, heard=60), missed=missed))
    for pcm in missed:
        silent = _greedy(here, pcm, 0, fresh=False)
        silent.forced_text[:], silent.forced_audio[:] = PAD_TOKEN, here.silence
        here.step(silent)
    for pcm in sound(rng, 20):
        stayed, moved = here.step(_greedy(here, pcm, 0, fresh=False)), there.step(_greedy(there, pcm, 0, fresh=False))
        for what in ("text", "agent_codes", "caller_codes", "caller_text"):
            assert np.array_equal(getattr(stayed, what), getattr(moved, what)), what


def _text_logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Fills with what each step that follows predicts for its text [text card]."""
    seen: list[torch.Tensor] = []
    take = Generator._take_text

    def watched(self: Generator, x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(linear(x, self.model.text_linear.weight)[0].float())
        return take(self, x, *rest)

    monkeypatch.setattr(Generator, "_take_text", watched)
    return seen


@pytest.mark.parametrize("name", ["lm", "wide"])
def test_a_call_that_has_outlived_the_window_is_rebuilt_with_nearly_the_same_mind(
        models: dict[str, Model], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models[name]
    context = model.lm.config.temporal.context
    assert context is not None
    engine, rng = MoshiEngine(model, 2), np.random.default_rng(3)
    inputs = [_greedy(engine, pcm, 0, fresh=k == 0) for k, pcm in enumerate(sound(rng, 4 * context))]
    outputs = [engine.step(each) for each in inputs]
    engine.rebuild(1, _past(inputs[-3 * context:], outputs[-3 * context:], heard=3 * context))
    logits = _text_logits(monkeypatch)
    same, apart = [], []
    for pcm in sound(rng, 40):
        stayed = engine.step(_greedy(engine, pcm, 0, fresh=False))
        after = _greedy(engine, pcm, 1, fresh=False)  # the same steps, so that one other token doesn't make others
        after.forced_text[:], after.forced_audio[:] = stayed.text, stayed.agent_codes
        same.append(bool(stayed.sampled_text[0] == engine.step(after).sampled_text[0]))
        ours, theirs = logits[-2:]
        apart.append(float((ours - theirs).abs().max() / ours.std()))
    assert sum(same) >= 38
    assert max(apart) < 1e-4, "of the deviation between a step's logits"


def test_a_history_of_another_model_is_refused_and_changes_nothing(engines: dict[str, MoshiEngine]) -> None:
    engine = engines["lm"]
    whole = Past(np.zeros(3, np.int64), np.zeros((engine.info.generated_codebooks, 3), np.int64),
                 np.zeros((engine.info.caller_codebooks, 3), np.int64), np.full(3, -1), np.zeros((1, 1920), np.float32),
                 np.zeros((0, 1920), np.float32))
    for changed, why in (({"agent_codes": np.zeros((1, 3), np.int64)}, "agent_codes has shape"),
                         ({"caller_codes": whole.caller_codes - 1}, "caller_codes must be from 0"),
                         ({"text": np.full(3, 10**6)}, "text must be from 0"),
                         ({"heard": np.full((1, 1920), np.nan, np.float32)}, "not finite")):
        with pytest.raises(ValueError, match=why):
            engine.rebuild(0, replace(whole, **changed))
