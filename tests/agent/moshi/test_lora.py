"""Adapters in the public layout are merged while a checkpoint is loaded; what is wrong with them is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import RANK, SCALING, adapted, drawn_adapters
from safetensors.torch import load_file, save_file

from agent.moshi.checkpoint import CheckpointError, load_model

GOLDEN = Path(__file__).parents[2] / "golden"
@pytest.mark.parametrize("name", ["lm", "wide", "stt"])
def test_each_map_grows_by_its_adapter(tmp_path, name):
    tensors = drawn_adapters(GOLDEN / name)
    before = load_model(GOLDEN / name).lm.state_dict()
    after = load_model(adapted(GOLDEN / name, tmp_path / "tuned", tensors)).lm.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name.replace("lora_A.", "") for name in tensors if "lora_A" in name}
    for name in changed:
        path = name.removesuffix("weight")
        grown = tensors[f"{path}lora_B.weight"].double() @ tensors[f"{path}lora_A.weight"].double()
        torch.testing.assert_close(after[name], (before[name].double() + SCALING * grown).float())


def test_products_are_float32_whatever_the_weights_are(tmp_path):
    folder = adapted(GOLDEN / "wide", tmp_path / "tuned", drawn_adapters(GOLDEN / "wide"))
    stored = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors")
    exact = load_model(folder, dtype=torch.float32).lm.state_dict()
    assert all(torch.equal(tensor, exact[name].bfloat16())
               for name, tensor in load_model(folder, dtype=torch.bfloat16).lm.state_dict().items())


def test_adapters_of_all_steps_under_one_name_are_taken_apart(tmp_path):
    tensors = drawn_adapters(GOLDEN / "wide")
    apart = load_model(adapted(GOLDEN / "wide", tmp_path / "apart", tensors)).lm.state_dict()
    fused: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        before, projs, after = name.partition("_projs.")
        fused.setdefault(f"{before}_proj.{after.split('.', 1)[1]}" if projs else name, []).append(tensor)
    assert len(fused) < len(tensors)
    joined = {name: torch.cat(parts) for name, parts in fused.items()}
    whole = load_model(adapted(GOLDEN / "wide", tmp_path / "whole", joined)).lm.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in apart.items())


def test_embeddings_that_were_tuned_replace_the_checkpoints(tmp_path):
    tuned = torch.ones(load_file(GOLDEN / "wide" / "model.safetensors")["emb.2.weight"].shape)
    tensors = drawn_adapters(GOLDEN / "wide") | {"emb.2.weight": tuned}
    assert torch.equal(load_model(adapted(GOLDEN / "wide", tmp_path / "tuned", tensors)).lm.emb.all()[2], tuned)


def test_a_map_may_go_without_an_adapter(tmp_path):
    few = {name: tensor for name, tensor in drawn_adapters(GOLDEN / "wide").items() if "text_linear" in name}
    before = load_model(GOLDEN / "wide").lm.state_dict()
    after = load_model(adapted(GOLDEN / "wide", tmp_path / "tuned", few)).lm.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["text_linear.weight"]


UP, DOWN = "linears.1.lora_B.weight", "linears.1.lora_A.weight"
WRONG = {
    "half a pair": (lambda t: t.pop(UP), {}, r"lora\.safetensors: tensor linears\.1\.lora_B\.weight is missing"),
    "the other half": (lambda t: t.pop(DOWN), {}, r"lora\.safetensors: tensor linears\.1\.lora_A\.weight is missing"),
    "unknown": (lambda t: t.update({"emb.0.lora_A.weight": torch.zeros(1)}), {},
                r"unexpected tensor emb\.0\.lora_A\.weight: the model has no map for it"),
    "shape": (lambda t: t.update({UP: torch.zeros(7, RANK)}), {},
              r"tensor linears\.1\.lora_B\.weight has shape \[7, 3\], the model and lora_rank 3 ask for \[48, 3\]"),
    "embedding": (lambda t: t.update({"text_emb.weight": torch.zeros(2, 2)}), {},
                  r"tensor text_emb\.weight has shape \[2, 2\]"),
    "integers": (lambda t: t.update({UP: t[UP].to(torch.int8)}), {}, r"linears\.1\.lora_B\.weight is stored as I8"),
    "rank": (lambda t: None, {"lora_rank": 4}, r"has shape \[3, 96\], the model and lora_rank 4 ask for \[4, 96\]"),
    "nothing": (lambda t: t.clear(), {}, r"lora\.safetensors: has no adapters"),
    "no file": (lambda t: None, {"lora_name": "mine.safetensors"}, r"mine\.safetensors is missing"),
    "name": (lambda t: None, {"lora_name": 7}, r"config: lora_name must be a file's name, not 7"),
    "not asked for": (lambda t: None, {"lora": False, "lora_name": "lora.safetensors"},
                      r"config: lora_name is there, but lora is not true"),
    "word": (lambda t: None, {"lora": "yes"}, r"config: lora 'yes' is not supported, only True"),
    "no rank": (lambda t: None, {"lora_rank": 0}, r"config: lora_rank must be a whole number from 1 on, not 0"),
    "scaling": (lambda t: None, {"lora_scaling": 0}, r"config: lora_scaling must be a positive number, not 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_adapters_is_named_in_one_line(tmp_path, wrong):
    spoil, config, line = WRONG[wrong]
    tensors = drawn_adapters(GOLDEN / "wide")
    spoil(tensors)
    folder = adapted(GOLDEN / "wide", tmp_path / "tuned", tensors, **config)
    with pytest.raises(CheckpointError, match=line) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_repositorys_file_is_named(tmp_path):
    folder = adapted(GOLDEN / "wide", tmp_path / "tuned", drawn_adapters(GOLDEN / "wide"), moshi_name="hf://wide")
    with pytest.raises(CheckpointError, match=r"hf://wide: is no file of a repository, hf://owner/name/file"):
        load_model(folder)
