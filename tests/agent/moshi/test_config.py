"""Official configs in, frozen configs out; what isn't known or supported is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.moshi.config import FIRST_7B, FIRST_MIMI, ConfigError, LMConfig, MimiConfig

LAYOUTS = Path(__file__).parents[2] / "golden" / "checkpoint_layouts"


def official(name: str) -> LMConfig:
    return LMConfig.from_dict(json.loads((LAYOUTS / f"{name}.config.json").read_text()))


def test_the_three_counts_of_codebooks_are_kept_apart():
    counts = {name: (config.generated_codebooks, config.agent_codebooks, config.caller_codebooks)
              for name in ("moshi-7b", "personaplex-7b", "stt-2.6b-en", "moshi-dev-2b-without-conditioners")
              for config in [official(name)]}
    assert counts == {"moshi-7b": (8, 8, 8), "personaplex-7b": (16, 8, 8), "stt-2.6b-en": (0, 0, 32),
                      "moshi-dev-2b-without-conditioners": (16, 16, 16)}


def test_a_config_without_content_is_the_first_7b():
    assert LMConfig.from_dict({}) == LMConfig.from_dict({"model_type": "moshi"}) == official("moshi-7b")


def test_keys_of_older_and_published_configs_are_understood():
    config = dict(FIRST_7B, depformer_causal=True, demux_second_stream=False, conditioners={}, lora=False,
                  fuser={"cross_attention_pos_emb": False, "sum": [], "cross": [], "prepend": []},
                  moshi_name="a", mimi_name="b", tokenizer_name="c", model_id={"sig": "x"}, lm_gen_config={})
    assert LMConfig.from_dict(config) == LMConfig.from_dict(FIRST_7B)


@pytest.mark.parametrize(("change", "line"), [
    ({"wibble": 1}, "config: unknown key 'wibble'"),
    ({"dim": None}, "config: dim must be a whole number from 1 on, not None"),
    ({"num_heads": 7}, "config: 7 heads don't divide dim 4096 into even parts"),
    ({"delays": [0, 1]}, "config: delays has 2 entries, n_q 16 asks for 17"),
    ({"dep_q": 17}, "config: dep_q 17 is more than n_q 16"),
    ({"gating": "gelu"}, "config: gating 'gelu' is not supported, only 'silu'"),
    ({"norm": "layer_norm"}, "config: norm 'layer_norm' is not supported, only 'rms_norm_f32'"),
    ({"cross_attention": True}, "config: cross_attention True is not supported, only False"),
    ({"conditioners": {"description": {"type": "tensor"}}},
     "config: conditioners: description: type 'tensor' is not supported, only 'lut'"),
    ({"conditioners": {"description": {"type": "lut", "lut": {
        "n_bins": 1, "dim": 4, "tokenizer": "noop", "possible_values": ["good", "bad"]}}}},
     "config: conditioners: description: n_bins 1 are fewer than its possible_values"),
    ({"conditioners": {"description": {"type": "lut", "lut": {
        "n_bins": 2, "dim": 4, "tokenizer": "noop", "possible_values": ["good", "bad"]}}}, "fuser": {"sum": []}},
     "config: fuser: sum names [], the conditioners are ['description']"),
    ({"fuser": {"cross": ["description"]}}, "config: fuser: cross is not supported, only sum"),
    ({"depformer_pos_emb": "sin"}, "config: depformer_pos_emb 'sin' is not supported, only 'none'"),
    ({"max_period": "soon"}, "config: max_period must be a positive number, not 'soon'"),
    ({"text_card": 3}, "config: text_card must be above 3, the token of padding"),
])
def test_what_a_config_gets_wrong_is_named_in_one_line(change, line):
    with pytest.raises(ConfigError) as error:
        LMConfig.from_dict(dict(FIRST_7B) | change)
    assert str(error.value) == line


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="config: delays is missing"):
        LMConfig.from_dict({key: value for key, value in FIRST_7B.items() if key != "delays"})


@pytest.mark.parametrize(("part", "change", "line"), [
    ("seanet", {"wobble": 1}, "Mimi's seanet: unknown key 'wobble'"),
    ("seanet", {"ratios": [7, 6, 5, 4]}, "Mimi: ratios [7, 6, 5, 4] don't divide a frame of 1920 samples"),
    ("seanet", {"pad_mode": "reflect"}, "Mimi's seanet: pad_mode 'reflect' is not supported, only 'constant'"),
    ("quantizer", {"n_q": 1}, "Mimi's quantizer: n_q must be at least 2"),
    ("transformer", {"d_model": 256}, "Mimi's transformer: d_model 256 is not supported, only 512"),
])
def test_what_a_codecs_config_gets_wrong_is_named_in_one_line(part, change, line):
    with pytest.raises(ConfigError) as error:
        MimiConfig.from_dict(dict(FIRST_MIMI) | {part: FIRST_MIMI[part] | change})
    assert str(error.value) == line


def test_a_frame_follows_from_the_codecs_config():
    mimi = MimiConfig.from_dict(FIRST_MIMI)
    assert (mimi.sample_rate, mimi.frame_samples, mimi.positions_per_frame, mimi.codebooks) == (24000, 1920, 2, 32)
