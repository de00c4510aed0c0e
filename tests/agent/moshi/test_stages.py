"""The way that devices other than the CPU take: the same results, and no wait for the device within a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agent.moshi.generate import Controls
from agent.moshi.kv import KVRing
from agent.moshi.sampling import ALL
from agent.moshi.stages import SlotClock, Stages, bucket_of
from agent.moshi.verify import verify

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = torch.device("cpu")
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


@pytest.fixture
def gathered_rings(monkeypatch):
    """Rings that gather their pages, as on a GPU, instead of reading them in place."""
    monkeypatch.setattr(KVRing, "in_place_on", ())


@pytest.mark.parametrize("name", ["lm", "stt"])
def test_golden_cases_agree_on_the_way_of_other_devices(gathered_rings, name):
    results = verify(GOLDEN / name, CPU, torch.float32)
    assert all(result.agrees for result in results), "\n".join(map(str, results))


class Watch(TorchDispatchMode):
    """Notes every operation that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITS:
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_stage_waits_for_the_device(gathered_rings, models):
    stages = Stages(models["lm"], 3)
    slots = [2, 0, 1]
    ones = torch.ones(4, dtype=torch.int64)
    controls = Controls(  # all that can be asked for
        text_mode=ones, forced_text=-ones, forced_audio=-torch.ones(4, 8, dtype=torch.int64), seed=ones,
        text_top_k=5 * ones, audio_top_k=0 * ones, text_temperature=ones.float(), audio_temperature=ones.float(),
        pad_bias=ones.float(), repetition_penalty=1.5 * ones.float(), text_tiers=(32,), audio_tiers=(ALL,),
        barred=True, penalised=True)
    watch = Watch()
    for step in range(3):
        with torch.inference_mode(), watch:
            fresh = [step == 0] * 3
            codes = stages.encode(slots, fresh, torch.randn(4, 1920), 8)
            generated = stages.generate(slots, fresh, codes, controls)
            stages.decode(slots, fresh, generated.aligned[:, 1:].clamp(min=0))
    assert watch.waits == []
    with torch.inference_mode(), watch:
        int(generated.text[0])
    assert watch.waits


def test_a_clock_counts_each_slots_steps_and_fills_up_to_a_bucket():
    clock = SlotClock(4, CPU)
    clock.rows([1, 3], [True, True])
    rows = clock.rows([3, 0, 1], [False, True, False])
    assert rows.host == ((3, 1), (0, 0), (1, 1), (4, 0))
    assert clock.rows([1], [True]).positions.tolist() == [0]
    assert clock.positions.tolist() == [1, 1, 0, 2, 0]
    assert [bucket_of(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16)] == [1, 2, 4, 4, 8, 8, 16, 16]
