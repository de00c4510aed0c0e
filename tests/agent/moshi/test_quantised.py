"""8 bits: published int8 files, ours of any checkpoint, adapters merged first; close to float32 by stated bounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters import adapted, drawn_adapters
from safetensors.torch import load_file, save_file

from agent.moshi.checkpoint import CheckpointError, load_model
from agent.moshi.config import LMConfig
from agent.moshi.layers import linear
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import maps
from agent.moshi.quantised import Quantised, quantise
from agent.moshi.verify import verify

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = torch.device("cpu")


def as_published(source: Path, folder: Path) -> Path:
    """The checkpoint with each linear map as bitsandbytes stores it: int8 and the greatest magnitude of each row."""
    shutil.copytree(source, folder)
    with torch.device("meta"):
        lm = LanguageModel(LMConfig.from_dict(json.loads((folder / "config.json").read_text())))
    tensors = load_file(folder / "model.safetensors")
    projections = {}
    for name in list(tensors):
        path = name.removesuffix(".weight").removesuffix("_weight")
        if path in maps(lm) or path.endswith(("in_proj", "out_proj")):
            weight = tensors.pop(name).half()
            greatest = weight.abs().amax(dim=1).float()
            projections[name] = (weight * (127 / greatest)[:, None]).round().to(torch.int8)
            projections[f"{name}_scb"] = greatest
    assert len(projections) > 20
    (folder / "model.safetensors").unlink()
    save_file(tensors | projections, folder / "model.q8.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"quantize": True}
    del config["moshi_name"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_8_bits(lm: LanguageModel) -> set[str]:
    return {name.removesuffix(".weight") for name, tensor in lm.state_dict().items() if tensor.dtype == torch.int8}


@pytest.mark.parametrize("inputs", [64, 66])
def test_a_product_with_int8_is_the_float_product_within_a_bound(inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, inputs, generator=generator) for rows in (81, 4))
    weight[3] = 0
    matrix = Quantised(*quantise(weight, torch.int8))
    assert (matrix.whole() - weight).abs().max() <= matrix.scale.max() / 2 + 1e-6
    expected = linear(x, weight)
    error = (linear(x, matrix) - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.01
    assert torch.equal(linear(x, matrix)[:, 3], torch.zeros(4))
    assert linear(x[None, :2].bfloat16(), matrix).dtype == torch.bfloat16
    assert linear(x[None, :2], matrix).shape == (1, 2, 81)


def test_a_row_comes_out_the_same_whatever_the_others_hold() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x, others = (torch.randn(rows, 256, generator=generator) for rows in (300, 8, 8))
    matrix = Quantised(*quantise(weight, torch.int8))
    alone = linear(x, matrix)
    for row in range(8):
        mixed = others.clone()
        mixed[(row + 3) % 8] = x[row]
        assert torch.equal(linear(mixed, matrix)[(row + 3) % 8], alone[row])


@pytest.mark.parametrize(("name", "weights", "kv"), [
    ("lm", "int8", None), ("stt", "int8", None), ("lm", None, "int8"), ("stt", None, "int8"), ("lm", None, "fp8"),
    ("wide", "int8", "int8")])
def test_8_bits_agree_with_float32_within_their_bounds(name, weights, kv) -> None:
    results = verify(GOLDEN / name, CPU, torch.float32, weights, kv)
    assert all(result.agrees for result in results), "\n".join(map(str, results))
    assert all("(bound " in str(result) for result in results if result.kind.startswith("lm"))


@pytest.mark.parametrize("name", ["lm", "wide"])
def test_a_published_int8_file_loads_as_it_is(tmp_path: Path, name: str) -> None:
    published = load_model(as_published(GOLDEN / name, tmp_path / name))
    ours = load_model(GOLDEN / name, weights="int8")
    assert in_8_bits(published.lm) == in_8_bits(ours.lm) == set(maps(load_model(GOLDEN / name).lm))
    for path in in_8_bits(ours.lm):
        one, other = (model.lm.get_submodule(path).matrix() for model in (published, ours))
        # the published one rounds to float16 first
        assert (one.whole() - other.whole()).abs().max() <= 1.1 * other.scale.max()
        assert (one.values.int() - other.values.int()).abs().max() <= 1
    codes = torch.randint(0, 40, (1, published.lm.config.streams, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = (model.lm(codes).text_logits for model in (published, ours))
    assert (one - other).square().mean().sqrt() < 0.05 * other.std()


def test_int8_without_its_scales_is_refused(tmp_path: Path) -> None:
    folder = as_published(GOLDEN / "wide", tmp_path / "q8")
    tensors = load_file(folder / "model.q8.safetensors")
    del tensors["text_linear.weight_scb"]
    save_file(tensors, folder / "model.q8.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor text_linear\.weight is stored as I8"):
        load_model(folder)
    tensors["text_linear.weight_scb"] = torch.ones(3)
    save_file(tensors, folder / "model.q8.safetensors")
    with pytest.raises(CheckpointError, match=r"text_linear\.weight_scb has shape \[3\], its matrix has 80 rows"):
        load_model(folder)


@pytest.mark.parametrize("published", [False, True])
def test_adapters_are_merged_before_the_maps_are_rounded(tmp_path: Path, published: bool) -> None:
    tensors = drawn_adapters(GOLDEN / "wide")
    whole = load_model(adapted(GOLDEN / "wide", tmp_path / "whole", tensors)).lm
    source = as_published(GOLDEN / "wide", tmp_path / "source") if published else GOLDEN / "wide"
    small = load_model(adapted(source, tmp_path / "small", tensors), weights=None if published else "int8").lm
    assert in_8_bits(small) == {name.removesuffix(".weight") for name in small.state_dict()
                                if name.removesuffix(".weight") in maps(whole)}
    for path in in_8_bits(small):
        matrix, expected = small.get_submodule(path).matrix(), whole.get_parameter(f"{path}.weight")
        roundings = 2.1 if published else 0.51
        assert ((matrix.whole() - expected).abs().amax(dim=1) <= roundings * matrix.scale).all(), path


def test_fp8_weights_without_such_a_gpu_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"fp8 weights need a GPU of compute capability 8\.9 .*, not cpu; int8"):
        load_model(GOLDEN / "wide", weights="fp8")
