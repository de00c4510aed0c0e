"""Roles and voices, on a small model of PersonaPlex's shape with random weights."""

from __future__ import annotations

import io
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.engine import EchoEngine, MoshiEngine, StepInputs, StepOutputs
from agent.moshi import prompt
from agent.moshi.checkpoint import Model, load_model
from agent.moshi.config import PAD_TOKEN
from agent.moshi.prompt import PromptError
from agent.moshi.random_model import CODEBOOKS, LM, make_random_model
from agent.personas import MOST_KEPT, Personas, loudness, to_loudness
from agent.step import Past
from calls.wire import Persona
from media.audio import write_wav

ROLE = "You are the receptionist of a restaurant. Be brief."
HOST = Persona(ROLE, "host")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was taught roles, with a voice of sound."""
    folder = tmp_path_factory.mktemp("model") / "persona"
    make_random_model(folder, lm=LM | {"dep_q": 2 * CODEBOOKS, "depformer_context": 2 * CODEBOOKS})
    (folder / "voices").mkdir()
    write_wav(folder / "voices" / "host.wav", sound(np.random.default_rng(1), 20).reshape(-1))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder)


@pytest.fixture
def engine(model: Model) -> MoshiEngine:
    return MoshiEngine(model, 4)


def sound(rng: np.random.Generator, rows: int) -> np.ndarray:
    return (0.2 * rng.standard_normal((rows, 1920))).astype(np.float32)


def greedy(engine: MoshiEngine, slot: int, pcm: np.ndarray, *, fresh: bool = False) -> StepInputs:
    inputs = StepInputs.free([slot], [fresh], pcm[None], engine.info, engine.default_sampling(1))
    inputs.sampling.text_temperature[:] = inputs.sampling.audio_temperature[:] = 0
    return inputs


def talk(engine: MoshiEngine, slot: int, frames: np.ndarray) -> list[StepOutputs]:
    return [engine.step(greedy(engine, slot, pcm)) for pcm in frames]


def differing(ones: list[StepOutputs], others: list[StepOutputs], *, bits: bool = False) -> list[str]:
    """What isn't the same in all steps: tokens, and with `bits` the sound too."""
    names = ("text", "sampled_text", "agent_codes", "caller_codes", *(["pcm"] if bits else []))
    return sorted({name for one, other in zip(ones, others, strict=True) for name in names
                   if getattr(one, name).tobytes() != getattr(other, name).tobytes()})


def step_by_step(engine: MoshiEngine, slot: int, persona: Persona) -> None:
    """The prompt as the model would go through it frame by frame, all its tokens forced."""
    history = engine._personas.prompt(persona).history
    agent = engine.info.agent_codebooks
    for at in range(len(history)):
        inputs = greedy(engine, slot, np.zeros(1920, np.float32), fresh=at == 0)
        inputs.forced_text[:] = int(history.text[at])
        inputs.forced_audio[0, :agent] = history.agent[:, at]
        engine.step_codes(inputs, history.caller[:, at:at + 1].T.numpy())


def test_one_pass_leaves_what_all_the_steps_would(engine: MoshiEngine) -> None:
    frames = sound(np.random.default_rng(2), 40)
    step_by_step(engine, 0, HOST)
    engine.begin(1, HOST)
    kept = len(engine._personas.prompt(HOST).history)
    for name, rows in engine.stages.generator.ring.rows().items():
        one, other = rows[0][..., :kept, :], rows[1][..., :kept, :]
        assert float((one - other).abs().max()) < 1e-4 * float(one.std()), name
    for name in ("tokens", "recent"):
        rows = engine.stages.generator.rows()[name]
        assert torch.equal(rows[0], rows[1]), name
    assert not differing(talk(engine, 0, frames), talk(engine, 1, frames))


def test_a_prompt_is_copied_bit_for_bit_whatever_was_in_the_slot(engine: MoshiEngine) -> None:
    frames = sound(np.random.default_rng(3), 20)
    engine.begin(0, HOST)
    first = talk(engine, 0, frames)
    for rows in engine.stages.state_rows().values():
        if rows.is_floating_point():
            rows[3] = torch.nan
    engine.begin(3, HOST)
    assert not differing(first, talk(engine, 3, frames), bits=True)


def test_the_callers_first_frame_is_heard_in_the_first_step(engine: MoshiEngine) -> None:
    engine.begin(0, HOST)
    engine.begin(1, HOST)
    for slot, code in enumerate((5, 6)):  # of the codebook without delay
        engine.step_codes(greedy(engine, slot, np.zeros(1920, np.float32)), np.array([[code, 1, 2, 3]]))
    kept = len(engine._personas.prompt(HOST).history)
    for rows in engine.stages.generator.ring.rows().values():
        assert not torch.equal(rows[0][..., kept, :], rows[1][..., kept, :])


def test_role_and_voice_make_a_difference(engine: MoshiEngine) -> None:
    frames = sound(np.random.default_rng(5), 30)
    heard = []
    for slot, persona in enumerate((HOST, Persona("You are a robot."), Persona("", "host"))):
        engine.begin(slot, persona)
        heard.append(np.concatenate([out.agent_codes for out in talk(engine, slot, frames)]))
    assert not any(np.array_equal(heard[a], heard[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_call_that_moves_takes_its_prompt_along(engine: MoshiEngine) -> None:
    rng = np.random.default_rng(6)
    frames, later = sound(rng, 30), sound(rng, 20)
    engine.begin(0, HOST)
    outputs = talk(engine, 0, frames)
    engine.rebuild(2, Past(
        text=np.concatenate([out.text for out in outputs]),
        agent_codes=np.concatenate([out.agent_codes for out in outputs]).T,
        caller_codes=np.concatenate([out.caller_codes for out in outputs]).T,
        caller_text=np.full(30, -1), heard=frames, missed=np.zeros((0, 1920), np.float32)), HOST)
    stayed, moved = talk(engine, 0, later), talk(engine, 2, later)
    assert not differing(stayed, moved)
    for one, other in zip(stayed, moved, strict=True):
        np.testing.assert_allclose(one.pcm, other.pcm, atol=1e-4)


def test_beginning_takes_far_less_than_a_frame(engine: MoshiEngine) -> None:
    engine.prepare(HOST)
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        engine.begin(0, HOST)
        taken.append(time.perf_counter() - began)
    assert np.median(taken) < 0.02


def test_the_prompts_parts_stand_where_they_should(model: Model) -> None:
    voice = prompt.Voice(codes=torch.arange(12).reshape(CODEBOOKS, 3) + 1)
    text, agent, caller = prompt.build(model, voice, [7, 8]).history
    silence = torch.tensor(model.silence())
    assert text.tolist() == [PAD_TOKEN] * 9 + [7, 8] + [PAD_TOKEN] * 6
    assert agent[0].tolist() == [1, 2, 3, *[silence[0]] * 14]
    assert agent[1].tolist() == [4, 4, 5, 6, *[silence[1]] * 13]  # delayed by one
    assert (caller == caller[:, :1]).all()


def published(model: Model, codes: torch.Tensor) -> bytes:
    """A voice's file as NVIDIA's code writes one: of N frames what it read in N - 1 steps, and its ring of tokens."""
    config, frames = model.lm.config, codes.shape[1]
    tokens = model.lm.initial_tokens(torch.device("cpu"))[:, None].repeat(1, frames + 2)  # by position
    agent = config.agent_codebooks
    tokens[0, 1:frames] = PAD_TOKEN
    for stream, delay in enumerate(config.delays[1:], 1):
        frame = codes[stream - 1] if stream <= agent else prompt._sine(model)[stream - 1 - agent].expand(frames)
        for at in range(frames):
            if at + delay > delay:
                tokens[stream, at + delay] = frame[at]
    length = config.largest_delay + 3
    ring = torch.zeros(1, config.streams, length, dtype=torch.int64)
    for position in range(frames - 1, frames + 1):
        ring[0, :, position % length] = tokens[:, position]
    file = io.BytesIO()
    torch.save({"embeddings": model.lm.embed(tokens[:, :frames - 1].T)[:, None, None], "cache": ring}, file)
    return file.getvalue()


def test_a_published_voice_goes_on_where_its_file_ends(model: Model, folder: Path, tmp_path: Path) -> None:
    codes = torch.from_numpy(np.random.default_rng(8).integers(0, 64, (CODEBOOKS, 9)))
    archive = folder / "voices.tgz"
    data = published(model, codes)
    with tarfile.open(archive, "w:gz") as file:
        about = tarfile.TarInfo("voices/NAT0.pt")
        about.size = len(data)
        file.addfile(about, io.BytesIO(data))
    engine = MoshiEngine(load_model(folder), 1)
    assert engine.model.files["voices"].path == archive
    made = engine._personas.prompt(Persona(ROLE, "NAT0"))
    read = engine.stages._generator._read(made.history, made.embeddings)
    # what is read at each position: the voice's nine frames, then silence, the acoustic codes one position later
    silence, sine = torch.tensor(model.silence()), prompt._sine(model)[:, 0]
    for position in range(8, 12):
        acoustic = codes[1:, position - 1] if position - 1 < 9 else silence[1:]
        semantic = codes[:1, position] if position < 9 else silence[:1]
        tokens = torch.cat([torch.tensor([PAD_TOKEN]), semantic, acoustic, sine])
        torch.testing.assert_close(read[position], model.lm.embed(tokens))
    assert len(made.embeddings) == 8
    engine.begin(0, Persona(ROLE, "NAT0"))
    assert np.isfinite(talk(engine, 0, sound(np.random.default_rng(9), 3))[-1].pcm).all()


@pytest.mark.parametrize(("persona", "why"), [
    (Persona(ROLE, "nobody"), "no voice nobody"),
    (Persona("word " * 700), "remembers 250"),
])
def test_what_cant_be_is_told_in_a_line(engine: MoshiEngine, persona: Persona, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        engine.begin(0, persona)


def test_a_file_that_is_no_voice_is_told_by_its_name(model: Model, tmp_path: Path) -> None:
    (tmp_path / "odd.wav").write_bytes(b"RIFF but no more")
    (tmp_path / "old.pt").write_bytes(b"not a pickle")
    personas = Personas(model, lambda _: pytest.fail("prefilled"), tmp_path)
    for name in ("odd", "old"):
        with pytest.raises(PromptError, match=f"voice {name}: "):
            personas.prefilled(Persona("", name))


def test_models_that_werent_taught_roles_say_so(tmp_path: Path) -> None:
    make_random_model(tmp_path / "plain")
    plain = load_model(tmp_path / "plain")
    for engine in (MoshiEngine(plain, 1), EchoEngine(1)):
        with pytest.raises(PromptError):
            engine.prepare(HOST)
    MoshiEngine(replace(plain, config={**plain.config, "roles": True}), 1).prepare(Persona(ROLE))


def test_a_bounded_number_of_prompts_is_kept(model: Model) -> None:
    made = []
    engine = MoshiEngine(model, 1)
    personas = Personas(model, lambda prompt: made.append(prompt) or engine.stages.prefill(prompt.history, None))
    each = [Persona(f"You are number {n}.") for n in range(MOST_KEPT + 1)]
    for persona in (*each, each[-1], each[1], each[0]):
        personas.prefilled(persona)
    assert len(made) == len(each) + 1  # only the first was forgotten
    assert len(personas._kept) == MOST_KEPT


def test_loudness_is_the_standards() -> None:
    tone = np.sin(2 * np.pi * 997 * np.arange(72000) / 24000).astype(np.float32)
    assert loudness(tone, 24000) == pytest.approx(-3.01, abs=0.1)
    assert loudness(to_loudness(0.01 * tone, 24000), 24000) == pytest.approx(-24, abs=0.05)
    assert not to_loudness(np.zeros(24000, np.float32), 24000).any()
