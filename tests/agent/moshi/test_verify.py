"""Golden cases pass whole, and a weight that is off by 5 % makes them fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.moshi.checkpoint import CheckpointError
from agent.moshi.verify import verify

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["lm", "wide", "stt"])
def test_all_golden_cases_agree(name):
    results = verify(GOLDEN / name, CPU, torch.float32)
    assert [result.name for result in results] == [
        case["name"] for case in json.loads((GOLDEN / name / "cases.json").read_text())]
    assert all(result.agrees for result in results), "\n".join(map(str, results))
    assert all("\n" not in str(result) for result in results)


@pytest.mark.parametrize("name", ["lm", "stt"])
def test_bfloat16_reports_its_agreement_against_a_bound(name):
    results = verify(GOLDEN / name, CPU, torch.bfloat16)
    assert all(result.agrees for result in results), "\n".join(map(str, results))
    assert all("(bound " in str(result) for result in results if result.kind.startswith("lm"))


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(GOLDEN / "lm", tmp_path / "lm")
    for path in (tmp_path / "lm").iterdir():
        path.chmod(0o644)
    return tmp_path / "lm"


@pytest.mark.parametrize(("file", "tensor", "kinds"), [
    ("model", "depformer.layers.1.self_attn.in_proj_weight", "lm_forward lm_stream"),
    ("model", "depformer.layers.0.gating.5.linear_out.weight", "lm_forward lm_stream"),
    ("model", "depformer_in.2.weight", "lm_forward lm_stream"),
    ("model", "transformer.layers.2.self_attn.out_proj.weight", "lm_forward lm_stream"),
    ("model", "transformer.layers.0.gating.linear_in.weight", "lm_forward lm_stream"),
    ("model", "transformer.layers.1.norm2.alpha", "lm_forward lm_stream"),
    ("mimi", "encoder.model.6.conv.conv.weight", "mimi_whole mimi_stream"),
    ("mimi", "encoder_transformer.transformer.layers.1.linear2.weight", "mimi_whole mimi_stream"),
    ("mimi", "decoder.model.5.convtr.convtr.weight", "mimi_whole mimi_stream"),
    ("mimi", "decoder.model.3.block.1.conv.conv.bias", "mimi_whole mimi_stream"),
    ("mimi", "decoder_transformer.transformer.layers.0.self_attn.in_proj_weight", "mimi_whole mimi_stream"),
])
def test_a_weight_that_is_off_by_5_percent_is_found(folder, file, tensor, kinds):
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file(tensors | {tensor: 1.05 * tensors[tensor]}, path)
    results = verify(folder, CPU, torch.float32)
    for kind in kinds.split():
        assert any(not result.agrees for result in results if result.kind == kind), f"no {kind} case noticed"


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "cases.safetensors")
    (folder / "cases.safetensors").unlink()
    del tensors["stream.executed"]
    save_file(tensors, folder / "cases.safetensors")


def speak_of_other_tokens(folder: Path) -> None:
    tensors = load_file(folder / "cases.safetensors")
    (folder / "cases.safetensors").unlink()
    save_file(tensors | {"stream.user": tensors["stream.user"] + 1000}, folder / "cases.safetensors")


@pytest.mark.parametrize(("spoil", "line"), [
    (lambda f: (f / "cases.json").unlink(), "no golden cases here: cases.json is missing"),
    (lambda f: (f / "cases.json").write_text("[]"), "must be a list of cases"),
    (lambda f: (f / "cases.json").write_text("nonsense"), "cases.json: not a JSON file"),
    (lambda f: (f / "cases.json").write_text('[{"name": "a", "kind": "tts"}]'), "is no case; kinds are lm_forward"),
    (lambda f: (f / "cases.safetensors").write_bytes(b"12345678"), "not a safetensors file"),
    (lambda f: (f / "cases.safetensors").unlink(), "cases.safetensors: No such file"),
    (speak_of_other_tokens, "golden case stream doesn't fit the model: index out of range"),
    (drop_a_tensor, "tensor stream.executed is missing"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
])
def test_a_folder_that_can_not_be_replayed_gets_one_line(folder, spoil, line):
    spoil(folder)
    with pytest.raises(CheckpointError, match=line) as error:
        verify(folder, CPU, torch.float32)
    assert "\n" not in str(error.value)
