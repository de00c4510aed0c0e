"""The engine, on small golden checkpoints: slots that don't feel each other, controls, what it refuses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from engines import SLOTS, drawn_inputs, poison, row_of, sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.engine import EchoEngine, MoshiEngine, Sampling, StepInputs, StepOutputs, TextMode, measure_threads
from agent.moshi.checkpoint import CheckpointError, Model, load_model
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, LMConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.stages import bucket_of
from agent.snapshot import Snapshot

GOLDEN = Path(__file__).parents[1] / "golden"


def joined(parts: list[StepInputs], order: np.ndarray) -> StepInputs:
    def column(pick) -> np.ndarray:
        return np.concatenate([pick(part) for part in parts])[order]

    return StepInputs(
        **{name: column(lambda part, name=name: getattr(part, name)) for name in vars(parts[0]) if name != "sampling"},
        sampling=Sampling(**{name: column(lambda part, name=name: getattr(part.sampling, name))
                             for name in vars(parts[0].sampling)}))


def live_through(engine: MoshiEngine, subject: list[StepInputs], slot: int, bucket: int, rng: np.random.Generator
                 ) -> list[dict[str, bytes]]:
    """Step the subject in `slot` among others that start, skip, end and break as they like; what came out for it."""
    others = [other for other in range(SLOTS) if other != slot]
    started: set[int] = set()
    poison(engine, [slot, *others, SLOTS])
    lived = []
    for inputs in subject:
        for with_subject in [False] * int(rng.integers(0, 2)) + [True]:
            count = int(rng.integers(bucket // 2 + 1, bucket + 1)) - with_subject if bucket > 1 else 1 - with_subject
            company = rng.permutation(others)[:max(0, count)].tolist()
            if company:
                fresh = [other not in started or rng.random() < 0.1 for other in company]
                parts = [drawn_inputs(engine, rng, company, fresh)]
                started |= set(company)
            else:
                parts = []
            if with_subject:
                parts.append(replace(inputs, slots=np.array([slot])))
            elif not parts:
                continue
            rows = sum(len(part.slots) for part in parts)
            order = rng.permutation(rows)
            assert bucket_of(rows) == bucket or not with_subject
            outputs = engine.step(joined(parts, order))
            if with_subject:
                lived.append(row_of(outputs, int(np.flatnonzero(order == rows - 1)[0])))
            if rng.random() < 0.2:
                broken = [int(other) for other in rng.permutation(others)[:2]]
                poison(engine, broken)
                started -= set(broken)
    return lived


@pytest.mark.parametrize("name", ["lm", "wide", "stt"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bucket=st.sampled_from([1, 2, 4, 8]), steps=st.integers(2, 12), seed=st.integers(0, 2**32 - 1),
       first=st.integers(0, SLOTS - 1), second=st.integers(0, SLOTS - 1))
def test_a_slot_gets_the_same_bits_whatever_the_others_do(engines, name, bucket, steps, seed, first, second):
    engine, rng = engines[name], np.random.default_rng(seed)
    subject = [drawn_inputs(engine, rng, [0], [step == 0 or rng.random() < 0.1]) for step in range(steps)]
    once = live_through(engine, subject, first, bucket, np.random.default_rng(seed + 1))
    again = live_through(engine, subject, second, bucket, np.random.default_rng(seed + 2))
    assert once == again


def one_call(engine: MoshiEngine, steps: int, slot: int = 0, seed: int = 3, sampling_seed: int = 0, **changes
             ) -> list[StepOutputs]:
    """A call of `steps` steps in one slot; changes are fields of StepInputs or Sampling, or functions of the step."""
    rng, outputs = np.random.default_rng(seed), []
    for step in range(steps):
        inputs = StepInputs.free([slot], [step == 0], sound(rng, 1), engine.info,
                                 Sampling.of(1, seed=sampling_seed, text_temperature=0, audio_temperature=0))
        for name, change in changes.items():
            value = change(step) if callable(change) else change
            getattr(inputs if hasattr(inputs, name) else inputs.sampling, name)[:] = value
        outputs.append(engine.step(inputs))
    return outputs


def texts(outputs: list[StepOutputs]) -> list[int]:
    return [int(output.text[0]) for output in outputs]


def codes(outputs: list[StepOutputs]) -> list[list[int]]:
    return [output.agent_codes[0].tolist() for output in outputs]


def test_a_fresh_start_forgets_the_call_before(engines):
    first = one_call(engines["lm"], 8, seed=1)
    one_call(engines["lm"], 5, seed=2)
    again = one_call(engines["lm"], 8, seed=1)
    assert [row_of(output, 0) for output in first] == [row_of(output, 0) for output in again]


def test_the_agent_is_silent_until_its_first_whole_frame(engines):
    for name, delay in (("lm", 1), ("wide", 2)):
        outputs = one_call(engines[name], 5)
        assert [bool(output.pcm.any()) for output in outputs] == [step >= delay for step in range(5)]


def test_a_forced_text_token_is_taken_and_leaves_the_frames_before_it_alone(engines):
    free = one_call(engines["lm"], 12)
    token = (texts(free)[6] + 1) % 100
    forced = one_call(engines["lm"], 12, forced_text=lambda step: token if step == 6 else -1)
    assert texts(forced)[6] == token
    assert forced[6].sampled_text[0] == texts(free)[6]
    assert all(np.array_equal(a.pcm, b.pcm) for a, b in zip(free[:6], forced[:6], strict=True))
    assert not np.array_equal(free[7].pcm, forced[7].pcm)


def test_a_forced_code_is_taken_and_feeds_the_codebooks_after_it(engines):
    def last_codes(forced: int) -> list[int]:
        third = [-1, -1, forced, -1, -1, -1, -1, -1]
        return codes(one_call(engines["lm"], 6, forced_audio=lambda step: third if step == 5 else -1))[5]

    tried = {code: last_codes(code) for code in range(0, 64, 4)}
    assert {taken[2] for taken in tried.values()} == set(tried)
    assert len({tuple(taken[:2]) for taken in tried.values()}) == 1
    assert len({tuple(taken[3:]) for taken in tried.values()}) > 1


def test_text_modes_bar_what_is_taken_but_not_what_is_reported_as_sampled(engines):
    free = one_call(engines["lm"], 20, text_temperature=1.0)
    told = one_call(engines["lm"], 20, text_temperature=1.0, text_mode=TextMode.TOLD, forced_text=50)
    words = one_call(engines["lm"], 20, text_temperature=1.0, text_mode=TextMode.WORD_ONLY, pad_bias=20)
    assert told[0].sampled_text[0] == free[0].text[0]
    for output in told:
        sampled = output.sampled_text[0]
        assert output.text[0] == (sampled if sampled in (PAD_TOKEN, EPAD_TOKEN) else 50)
    assert 50 in texts(told)
    assert not set(texts(words)) & {PAD_TOKEN, EPAD_TOKEN}
    assert all(output.sampled_text[0] == PAD_TOKEN for output in words)


def test_a_forced_token_wins_over_the_mode(engines):
    outputs = one_call(engines["lm"], 3, text_mode=TextMode.WORD_ONLY, forced_text=PAD_TOKEN)
    assert texts(outputs) == [PAD_TOKEN] * 3


def test_pad_bias_makes_the_agent_speak_less(engines):
    plain = texts(one_call(engines["lm"], 60, text_temperature=1.0, text_top_k=0))
    biased = texts(one_call(engines["lm"], 60, text_temperature=1.0, text_top_k=0, pad_bias=8))
    assert plain.count(PAD_TOKEN) < 20 < 40 < biased.count(PAD_TOKEN)


def test_a_repetition_penalty_makes_the_agent_vary_its_words(engines):
    plain = texts(one_call(engines["lm"], 40, text_temperature=0.3))
    varied = texts(one_call(engines["lm"], 40, text_temperature=0.3, repetition_penalty=3))
    assert len(set(varied)) > len(set(plain)) + 5


def test_a_seed_decides_the_draws_and_greedy_rows_ignore_it(engines):
    def run(seed: int, temperature: float) -> list[list[int]]:
        return codes(one_call(engines["lm"], 6, sampling_seed=seed, audio_temperature=temperature))

    assert run(1, 0.8) == run(1, 0.8)
    assert run(1, 0.8) != run(2, 0.8)
    assert run(1, 0.0) == run(2, 0.0)


def test_signs_tell_silence_from_gibberish(engines):
    silent = one_call(engines["lm"], 70, forced_text=PAD_TOKEN)[-1]
    gibberish = one_call(engines["lm"], 70, forced_text=lambda step: step)[-1]
    assert silent.text_entropy[0] == pytest.approx(0, abs=1e-6)
    assert gibberish.text_entropy[0] == pytest.approx(np.log(64), abs=1e-5)
    even = one_call(engines["lm"], 70, forced_audio=7)[-1]
    one_stuck = one_call(engines["lm"], 70, forced_audio=lambda step: [7] + [step % 64] * 7)[-1]
    assert even.codebook_spread[0] == pytest.approx(0, abs=1e-6)
    assert one_stuck.codebook_spread[0] > 1
    assert even.audio_entropy[0] == pytest.approx(0, abs=1e-6)
    assert one_stuck.audio_entropy[0] > 3


def test_a_speech_to_text_model_writes_the_callers_words_and_pauses(engines):
    outputs = one_call(engines["stt"], 4)[-1]
    assert not outputs.pcm.any()
    assert outputs.agent_codes.shape == (1, 0)
    assert outputs.caller_text[0] == outputs.text[0] >= 0
    assert outputs.pauses.shape == (1, 4, 6)
    assert outputs.pauses.sum(axis=2) == pytest.approx(1, abs=1e-5)
    assert engines["stt"].default_sampling(2).text_temperature.tolist() == [0, 0]


def test_a_model_that_predicts_the_caller_too_hears_them_instead(models):
    config = dict(models["lm"].config, dep_q=16, depformer_context=16)
    torch.manual_seed(0)
    lm = LanguageModel(LMConfig.from_dict(config))
    for parameter in lm.parameters():
        parameter.normal_(0, 0.2)
    engine = MoshiEngine(replace(models["lm"], lm=lm), 2)
    info = engine.info
    assert (info.generated_codebooks, info.agent_codebooks, info.caller_codebooks) == (16, 8, 8)
    outputs = one_call(engine, 3)[-1]
    assert outputs.agent_codes[0, 8:].tolist() == [-1] * 8
    assert min(outputs.agent_codes[0, :8]) >= 0
    heard = engine.stages.generator.tokens[0, 9:]
    assert heard[0, 2] == outputs.caller_codes[0, 0]  # of step 2, read in that step


def test_state_is_slot_major_and_nothing_grows(engines):
    engine = engines["lm"]
    one_call(engine, 60)
    before = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in engine.stages.state_rows().items()}
    assert all(shape[0] == SLOTS + 1 for _, shape in before.values())
    resident = psutil.Process().memory_info().rss
    one_call(engine, 200)
    assert {name: (tensor.data_ptr(), tensor.shape)
            for name, tensor in engine.stages.state_rows().items()} == before
    assert psutil.Process().memory_info().rss - resident < 8e6


def test_a_slot_that_is_saved_and_restored_goes_on_bit_for_bit_in_another_engine(
        nano: tuple[Model, Model], tmp_path: Path) -> None:
    agent, stt = nano
    here, there = MoshiEngine(agent, 2, stt), MoshiEngine(agent, 3, stt)
    rng = np.random.default_rng(5)
    for k in range(40):
        here.step(drawn_inputs(here, rng, [0, 1], [k == 0] * 2))
        there.step(drawn_inputs(there, rng, [2], [k == 0]))
    here.save(1).write(tmp_path / "slot")
    there.restore(2, Snapshot.read(tmp_path / "slot"))
    for _ in range(10):
        inputs = drawn_inputs(here, rng, [1], [False])
        stayed = here.step(inputs)
        assert row_of(there.step(replace(inputs, slots=np.array([2]))), 0) == row_of(stayed, 0)


def test_a_snapshot_of_something_else_is_refused_and_changes_nothing(
        engines: dict[str, MoshiEngine], tmp_path: Path) -> None:
    engine = engines["lm"]
    one_call(engine, 10)
    kept = engine.save(0)
    for other, why in ((engines["wide"].save(0), "snapshot: of wide on cpu, not of lm on cpu"),
                       (replace(kept, device="cuda"), "of lm on cuda, not"),
                       (replace(kept, rows={"generator.tokens": kept.rows["generator.tokens"]}), "is None, not"),
                       (replace(kept, rows={**kept.rows, "generator.tokens": torch.zeros(1)}), "generator.tokens is")):
        with pytest.raises(ValueError, match=why):
            engine.restore(0, other)
    after = engine.save(0)
    assert all(after.rows[name].numpy().tobytes() == row.numpy().tobytes() for name, row in kept.rows.items())
    (tmp_path / "other").write_text("something else")
    with pytest.raises(ValueError, match="other: no snapshot"):
        Snapshot.read(tmp_path / "other")


def bad(engine: MoshiEngine, **changes) -> StepInputs:
    inputs = StepInputs.free([0, 1], [True, True], np.zeros((2, 1920), np.float32), engine.info,
                             engine.default_sampling(2))
    return replace(inputs, **changes)


@pytest.mark.parametrize(("changes", "line"), [
    ({"slots": np.array([1, 1])}, "a slot stands twice"),
    ({"slots": np.array([0, 8])}, "slot 8 is none of 0 to 7"),
    ({"slots": np.array([-1, 0])}, "slot -1 is none of"),
    ({"pcm": np.zeros((2, 1919), np.float32)}, r"pcm has shape \[2, 1919\], not \[2, 1920\]"),
    ({"pcm": np.full((2, 1920), np.nan, np.float32)}, "pcm is not finite"),
    ({"fresh": np.array([True])}, "fresh has shape"),
    ({"text_mode": np.array([0, 3])}, "text_mode must be from 0 to 2"),
    ({"forced_text": np.array([-1, 100])}, "forced_text must be from -1 to 99"),
    ({"forced_audio": np.full((2, 7), -1)}, "forced_audio has shape"),
    ({"forced_audio": np.full((2, 8), 64)}, "forced_audio must be from -1 to 63"),
    ({"sampling": Sampling.of(3)}, "sampling.seed has shape"),
    ({"sampling": Sampling.of(2, text_temperature=-1)}, "a temperature is below 0"),
    ({"sampling": Sampling.of(2, repetition_penalty=0)}, "a repetition penalty must be above 0"),
])
def test_inputs_that_do_not_fit_are_refused_in_one_line_and_change_nothing(engines, changes, line):
    engine = engines["lm"]
    before = {name: tensor.clone() for name, tensor in engine.stages.state_rows().items()}
    with pytest.raises(ValueError, match=line) as refused:
        engine.step(bad(engine, **changes))
    assert "\n" not in str(refused.value)
    assert all(np.array_equal(before[name], tensor, equal_nan=True)
               for name, tensor in engine.stages.state_rows().items())


def test_threads_are_measured_without_touching_a_slot(engines):
    engine = engines["lm"]
    one_call(engine, 5)
    rows = engine.stages.state_rows()
    before = {name: tensor[:SLOTS].clone() for name, tensor in rows.items()}
    threads = torch.get_num_threads()
    assert measure_threads(engine, most=2) in (1, 2)
    assert torch.get_num_threads() == threads
    assert all(np.array_equal(before[name], tensor[:SLOTS], equal_nan=True) for name, tensor in rows.items())


def test_echo_gives_back_what_it_hears_one_frame_later():
    engine, rng = EchoEngine(slots=3), np.random.default_rng(0)
    frames = [sound(rng, 2) for _ in range(3)]
    heard = [engine.step(StepInputs.free([2, 0], [step == 0, step == 0], frame, engine.info,
                                         engine.default_sampling(2))) for step, frame in enumerate(frames)]
    assert not heard[0].pcm.any()
    assert np.array_equal(heard[1].pcm, frames[0])
    assert np.array_equal(heard[2].pcm, frames[1])
    again = engine.step(StepInputs.free([0], [True], frames[0][:1], engine.info, engine.default_sampling(1)))
    assert not again.pcm.any()
    assert again.text.tolist() == [PAD_TOKEN]


def test_speech_to_text_beside_the_agent_changes_no_token_of_it(nano: tuple[Model, Model]) -> None:
    agent, stt = nano
    alone, both = MoshiEngine(agent, 2), MoshiEngine(agent, 2, stt)
    rng = np.random.default_rng(0)
    heard = set()
    for k in range(40):
        pcm = sound(rng, 2)
        rows = [StepInputs.free([0, 1], [k == 0] * 2, pcm, engine.info, engine.default_sampling(2))
                for engine in (alone, both)]
        first, second = alone.step(rows[0]), both.step(rows[1], transcribe=k % 3 > 0)
        for name in ("pcm", "text", "sampled_text", "agent_codes", "caller_codes", "text_entropy"):
            assert np.array_equal(getattr(first, name), getattr(second, name)), name
        assert set(first.caller_text) == {-1}
        assert (set(second.caller_text) == {-1}) == (k % 3 == 0)
        assert second.pauses.shape == (2, both.info.pause_heads, 1)
        heard |= set(second.caller_text.tolist())
    assert len(heard) > 1


def test_speech_to_text_that_hears_by_another_codec_is_refused(nano: tuple[Model, Model]) -> None:
    with pytest.raises(CheckpointError, match="hears by another Mimi"):
        MoshiEngine(nano[0], 1, replace(nano[1], mimi=load_model(GOLDEN / "wide").mimi))
    with pytest.raises(CheckpointError, match="no speech-to-text model"):
        MoshiEngine(nano[0], 1, nano[0])


def test_silence_is_what_the_codec_makes_of_it(nano: tuple[Model, Model]) -> None:
    agent, _ = nano
    pcm = agent.voice.decode(torch.tensor(agent.silence())[None, :, None].expand(-1, -1, 50))
    assert float(pcm[0, 1920 * 10:].abs().max()) < 10 ** (-50 / 20)


def test_a_voice_of_its_own_speaks_while_the_models_mimi_hears(nano: tuple[Model, Model]) -> None:
    agent, _ = nano
    quiet = deepcopy(agent.voice)
    with torch.no_grad():
        for parameter in quiet.decoder.ends[1].parameters():
            parameter.mul_(0.5)
    one, two = MoshiEngine(agent, 1), MoshiEngine(replace(agent, voice=quiet), 1)
    rng, heard = np.random.default_rng(2), 0.0
    for k in range(30):
        inputs = StepInputs.free([0], [k == 0], sound(rng, 1), one.info, one.default_sampling(1))
        as_one, as_two = one.step(inputs), two.step(inputs)
        for name in ("text", "agent_codes", "caller_codes"):
            assert np.array_equal(getattr(as_one, name), getattr(as_two, name)), name
        np.testing.assert_allclose(2 * as_two.pcm, as_one.pcm, atol=1e-6)
        heard = max(heard, float(np.abs(as_one.pcm).max()))
    assert heard > 0.001
