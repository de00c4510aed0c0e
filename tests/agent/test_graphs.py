"""The step as a GPU runs it: captured once, then replayed on the same memory; on a CPU, by a tape of its operations."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest
import torch
from engines import drawn_inputs, row_of, sound
from tape import NotCapturable, Recording, Tape
from torch.utils._pytree import tree_leaves

from agent.engine import MoshiEngine, Sampling, StepInputs
from agent.moshi import frame, verify
from agent.moshi.checkpoint import Model
from agent.moshi.config import FIRST_7B, FIRST_MIMI
from agent.moshi.generate import Controls, Generated
from agent.moshi.kv import PLAIN, KVRing, KVSettings
from agent.moshi.noise_model import make_noise_model
from agent.moshi.stages import Stages

GOLDEN = Path(__file__).parents[1] / "golden"
SLOTS = 3
PAGE, NANO_PAGE = 8, 500  # of contexts of 24 and 1500


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVRing, "in_place_on", ())


def captured(model: Model, slots: int = 2, stt: Model | None = None, kind: str | None = None, page: int = PAGE
             ) -> MoshiEngine:
    engine = MoshiEngine(model, slots, stt, kv=KVSettings(kind, page=page), capture=Tape)  # type: ignore[arg-type]
    engine.prepare_steps()
    return engine


def tapes(engine: MoshiEngine) -> dict[frame.Plan, Tape]:
    assert engine.graphs is not None
    return engine.graphs._replays  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_replayed_steps_are_steps(models: dict[str, Model], kind: str | None) -> None:
    """Calls that start, skip, end and ask for anything, at all ages."""
    plain = MoshiEngine(models["lm"], SLOTS, kv=KVSettings(kind, page=PAGE))  # type: ignore[arg-type]
    replayed = captured(models["lm"], SLOTS, kind=kind)
    rng = np.random.default_rng(0)
    started: set[int] = set()
    for step in range(60):
        slots = sorted(rng.choice(SLOTS, int(rng.integers(1, SLOTS + 1)), replace=False).tolist())
        inputs = drawn_inputs(plain, rng, slots, [slot not in started or rng.random() < 0.02 for slot in slots])
        started |= set(slots)
        one, other = plain.step(inputs), replayed.step(inputs)
        for name in ("text", "sampled_text", "agent_codes", "caller_codes"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (step, name)
        assert np.allclose(one.pcm, other.pcm, atol=1e-5)
        assert np.allclose(one.text_entropy, other.text_entropy, atol=1e-6)
    assert replayed.graphs is not None
    assert replayed.graphs.run_as_they_are == 0
    assert sum(tape.replays for tape in tapes(replayed).values()) == 60


def test_the_callers_words_are_in_it_and_may_be_left_out(nano: tuple[Model, Model]) -> None:
    agent, stt = nano
    plain, replayed = MoshiEngine(agent, 2, stt, kv=KVSettings(page=NANO_PAGE)), captured(agent, 2, stt, page=NANO_PAGE)
    rng = np.random.default_rng(1)
    for k in range(24):
        inputs = StepInputs.free([1, 0], [k == 0] * 2, sound(rng, 2), plain.info, plain.default_sampling(2))
        one, other = (engine.step(inputs, transcribe=k % 3 > 0) for engine in (plain, replayed))
        for name in ("text", "agent_codes", "caller_text"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (k, name)
        assert np.allclose(one.pauses, other.pauses, atol=1e-5)
        assert (set(other.caller_text) == {-1}) == (k % 3 == 0)
    assert {plan.transcribes for plan, tape in tapes(replayed).items() if tape.replays} == {True, False}


class _Captured(Stages):
    """Stages whose `generate` is captured at a bucket's first step and replayed from then on."""

    def __init__(self, model: Model, slots: int, kv: KVSettings) -> None:
        super().__init__(model, slots, KVSettings(kv.kind, kv.sinks, PAGE))
        self.replays = 0
        self._tapes: dict[int, tuple[Tape, list[torch.Tensor], list[Generated]]] = {}

    def generate(self, slots, fresh, caller_codes, controls) -> Generated:
        pairs = self.generate_clock.count(slots, fresh)
        with torch.inference_mode():
            self.generator.ring.ready(pairs)
        given = [torch.tensor([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs]), caller_codes,
                 controls.forced_text, controls.forced_audio]
        size = len(pairs)
        if size not in self._tapes:
            held, out = [tensor.clone() for tensor in given], list[Generated]()
            free = Controls.greedy(size, self.model.lm.config.generated_codebooks, self.device, held[3], held[4])
            # recorded on the scratch slot, as an engine does
            held[0].fill_(self.slots), held[1].zero_()
            tape = Tape(lambda: out.append(self.generate_rows(held[2], free, frame.Rows(held[0], held[1], None))))
            self._tapes[size] = tape, held, out
        tape, held, out = self._tapes[size]
        for buffer, tensor in zip(held, given, strict=True):
            buffer.copy_(tensor)
        tape()
        self.replays += 1
        return Generated(*(tensor.clone() for tensor in out[0]))


@pytest.mark.parametrize(("name", "kv"), [("lm", None), ("wide", None), ("stt", None), ("lm", "int8"), ("lm", "fp8")])
def test_golden_cases_go_through_replayed_steps(monkeypatch: pytest.MonkeyPatch, name: str, kv: str | None) -> None:
    made: list[_Captured] = []

    def stages(model: Model, slots: int, kv: KVSettings = PLAIN) -> _Captured:
        made.append(_Captured(model, slots, kv))
        return made[-1]

    monkeypatch.setattr(verify, "Stages", stages)
    results = verify.verify(GOLDEN / name, torch.device("cpu"), torch.float32, kv=kv)  # type: ignore[arg-type]
    assert all(result.agrees for result in results), "\n".join(map(str, results))
    assert sum(each.replays for each in made) > 20


@pytest.mark.parametrize(("name", "kv"), [
    ("lm", KVSettings(page=PAGE)), ("wide", KVSettings("int8", 4, PAGE)), ("stt", KVSettings("fp8", page=PAGE)),
    ("nano", KVSettings("int8", 2, NANO_PAGE))])
def test_a_step_of_everything_can_be_captured_and_has_no_host_in_it(
        models: dict[str, Model], nano: tuple[Model, Model], name: str, kv: KVSettings) -> None:
    model, stt = nano if name == "nano" else (models[name], None)
    engine = MoshiEngine(model, 1, stt, kv=kv, capture=Tape)
    engine.prepare_steps()  # raises NotCapturable
    assert len(tapes(engine)) == (2 if stt else 1) * (len(engine.frame.reaches) + 1)


def test_steps_that_cant_be_captured_run_as_they_are(models: dict[str, Model]) -> None:
    def refuse(function: object) -> NoReturn:
        raise RuntimeError("no graphs here")

    engine, plain = MoshiEngine(models["lm"], 1, capture=refuse), MoshiEngine(models["lm"], 1)
    with pytest.raises(RuntimeError, match="no graphs here"):
        engine.prepare_steps()
    inputs = drawn_inputs(plain, np.random.default_rng(3), [0], [True])
    assert row_of(engine.step(inputs), 0) == row_of(plain.step(inputs), 0)
    assert engine.graphs is not None
    assert engine.graphs.run_as_they_are == 1


def test_what_waits_for_the_device_is_found(models: dict[str, Model]) -> None:
    mask = torch.tensor([True, False])
    for waits in (lambda: int(mask.sum()), lambda: mask.nonzero(), lambda: torch.ones(2)[mask],
                  lambda: torch.tensor([3]), lambda: bool(mask.any())):
        with pytest.raises(NotCapturable):
            Tape(waits)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_whole_moshiko_takes_a_step_where_nothing_can_be_looked_at(weights: str | None) -> None:
    """At full size on a device without memory: no operation needs what a tensor holds, none mixes in the host's."""
    device = torch.device("meta")
    model = make_noise_model("moshiko", FIRST_7B, FIRST_MIMI, device=device, dtype=torch.bfloat16,
                             weights=weights)  # type: ignore[arg-type]
    step = frame.Frame(model, Stages(model, 4, KVSettings("int8" if weights else None, page=128)), None)
    plan = frame.Plan(rows=4, reach=1024, hears=True, speaks=True, transcribes=False, text_tiers=(32,),
                      audio_tiers=(256,), barred=True, penalised=True)
    step.run(plan)  # what is made once
    with torch.inference_mode(), Recording() as recording:
        step.run(plan)
    devices = {leaf.device.type for _, args, _, out in recording.operations for leaf in tree_leaves((args, out))
               if isinstance(leaf, torch.Tensor) and leaf.dim() > 0}
    assert devices == {"meta"}
    assert recording.launches < 7000, recording.names().most_common(12)


def test_a_step_allocates_nothing_that_stays(models: dict[str, Model]) -> None:
    engine, rng = captured(models["lm"], SLOTS), np.random.default_rng(2)

    def run(steps: int) -> None:
        for _ in range(steps):
            engine.step(StepInputs.free([0, 2], [False] * 2, sound(rng, 2), engine.info, Sampling.of(2)))

    engine.step(StepInputs.free([0, 2], [True] * 2, sound(rng, 2), engine.info, Sampling.of(2)))
    run(60)
    buffers = engine.frame.buffers[2]
    before = [value.data_ptr() for value in vars(buffers).values() if isinstance(value, torch.Tensor)]
    resident = psutil.Process().memory_info().rss
    run(120)
    assert [value.data_ptr() for value in vars(buffers).values() if isinstance(value, torch.Tensor)] == before
    assert psutil.Process().memory_info().rss - resident < 8e6


def test_a_saved_slot_goes_on_in_other_pages(models: dict[str, Model]) -> None:
    here, there = (MoshiEngine(models["lm"], 2, kv=KVSettings(page=PAGE)) for _ in range(2))
    rng = np.random.default_rng(5)
    for k in range(40):
        here.step(drawn_inputs(here, rng, [1, 0], [k == 0] * 2))
    there.restore(0, here.save(1))
    for _ in range(20):
        inputs = drawn_inputs(here, rng, [1], [False])
        stayed = here.step(inputs)
        inputs.slots[:] = 0
        assert row_of(there.step(inputs), 0) == row_of(stayed, 0)
    short = MoshiEngine(models["lm"], 2, kv=KVSettings(page=PAGE, pool=0))
    with pytest.raises(ValueError, match="0 pages of 8 positions are free"):
        short.restore(0, here.save(1))


def test_a_released_slot_gives_its_pages_back(models: dict[str, Model]) -> None:
    engine, rng = MoshiEngine(models["lm"], 2, kv=KVSettings(page=PAGE)), np.random.default_rng(6)
    pages = engine.stages.generator.ring.pages_of
    free = pages.free
    for k in range(PAGE + 2):
        engine.step(StepInputs.free([1], [k == 0], sound(rng, 1), engine.info, Sampling.of(1)))
    assert pages.free == free - 1
    engine.release(1)
    assert pages.free == free
