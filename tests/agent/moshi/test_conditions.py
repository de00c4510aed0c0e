"""A look-up condition's vector is added to each step's input, by the value chosen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.moshi.checkpoint import CheckpointError, load_model
from agent.moshi.config import EOS_TOKEN, PAD_TOKEN
from agent.moshi.generate import Controls
from agent.moshi.stages import Stages

GOLDEN = Path(__file__).parents[2] / "golden"
VALUES = ("very_bad", "bad", "good", "very_good")


@pytest.fixture
def conditioned(tmp_path: Path) -> Path:
    """wide as a Hibiki: with a condition `description`, in the official layout."""
    folder = tmp_path / "hibiki"
    shutil.copytree(GOLDEN / "wide", folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "hibiki",
        "conditioners": {"description": {"type": "lut", "lut": {
            "n_bins": 5, "dim": 4, "tokenizer": "noop", "possible_values": list(VALUES)}}},
        "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": ["description"],
                  "prepend": [], "cross": []}}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(folder / "model.safetensors")
    at = "condition_provider.conditioners.description"
    tensors |= {f"{at}.embed.weight": torch.randn(6, 4, generator=generator),
                f"{at}.output_proj.weight": torch.randn(96, 4, generator=generator),
                f"{at}.learnt_padding": torch.randn(1, 1, 96, generator=generator)}
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("value", [None, *VALUES])
def test_the_value_chosen_is_added_to_each_input(conditioned: Path, value: str | None, weights) -> None:
    model = load_model(conditioned, dtype=torch.float32, weights=weights,
                       conditions={"description": value} if value else None)
    stored = load_file(conditioned / "model.safetensors")
    at = "condition_provider.conditioners.description"
    row = stored[f"{at}.embed.weight"][VALUES.index(value or "very_good")]
    expected = stored[f"{at}.output_proj.weight"] @ row
    tokens = torch.randint(0, 48, (3, 33), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = load_model(GOLDEN / "wide", dtype=torch.float32).lm.embed(tokens)
        torch.testing.assert_close(model.lm.embed(tokens) - plain, expected.expand(3, -1), atol=1e-4, rtol=1e-4)


def test_a_step_is_the_parallel_forward_with_the_condition_too(conditioned: Path) -> None:
    model = load_model(conditioned, dtype=torch.float32, conditions={"description": "bad"})
    stages, length = Stages(model, 1), 8
    caller = torch.randint(0, 48, (length, 1, 16), generator=torch.Generator().manual_seed(2))
    taken = [stages.generate([0], [t == 0], caller[t], Controls.greedy(1, 16, model.device)).text
             for t in range(length)]
    other = load_model(conditioned, dtype=torch.float32, conditions={"description": "good"})
    stages = Stages(other, 1)
    else_taken = [stages.generate([0], [t == 0], caller[t], Controls.greedy(1, 16, model.device)).text
                  for t in range(length)]
    assert taken != else_taken
    first = model.lm.initial_tokens(model.device)[None, :, None]
    with torch.inference_mode():
        logits = model.lm.temporal(first)[0, -1] @ model.lm.text_linear.weight.T
    assert int(taken[0]) == int(logits.argmax())


def test_an_end_counts_as_padding_where_the_model_reads_it(conditioned: Path) -> None:
    embedding = load_model(conditioned).lm.text_emb.weight
    assert torch.equal(embedding[EOS_TOKEN], embedding[PAD_TOKEN])


@pytest.mark.parametrize(("given", "line"), [
    ({"description": "fine"}, "hibiki: description can't be 'fine', only very_bad, bad, good, very_good"),
    ({"mood": "good"}, "hibiki: has no condition mood")])
def test_a_value_that_the_model_doesnt_know_is_named(conditioned: Path, given, line: str) -> None:
    with pytest.raises(CheckpointError, match=line):
        load_model(conditioned, conditions=given)
