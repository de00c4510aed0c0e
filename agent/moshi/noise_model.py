"""A model of any shape with random weights, made where it is to run: to measure what a step costs, not what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from agent.moshi.checkpoint import Model, _assign
from agent.moshi.config import LMConfig, MimiConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import maps
from agent.moshi.mimi import Mimi
from agent.moshi.quantised import TYPES, EightBits, quantise


@torch.no_grad()
def make_noise_model(name: str, config: Mapping[str, Any], mimi_config: Mapping[str, Any], *, device: torch.device,
                     dtype: torch.dtype, weights: EightBits | None = None, seed: int = 0) -> Model:
    """Of checkpoints' configs; the language model in `dtype`, its linear maps in 8 bits where `weights` says so. No
    tensor is in memory twice. Raises ConfigError."""
    with torch.device("meta"):
        lm, mimi = LanguageModel(LMConfig.from_dict(config)), Mimi(MimiConfig.from_dict(mimi_config))
    in_8_bits = maps(lm) if weights else {}
    draw = torch.Generator(device if device.type != "meta" else "cpu")
    for module, kept in ((lm, dtype), (mimi, torch.float32)):
        draw.manual_seed(seed)  # so that models of one codec hear alike
        for path, meta in module.state_dict().items():
            tensor = torch.empty_strided(meta.shape, meta.stride(), dtype=kept, device=device)
            if device.type != "meta":
                _fill(tensor, path, draw)
            matrix = path.removesuffix(".weight")
            scale = None
            if weights and module is lm and matrix in in_8_bits:
                tensor, scale = quantise(tensor, TYPES[weights])
            _assign(module, path, tensor)
            if scale is not None:
                module.get_submodule(matrix).scale = scale
    return Model(name, lm.eval(), mimi.eval(), mimi, None, {}, config, mimi_config)


def _fill(tensor: torch.Tensor, name: str, draw: torch.Generator) -> None:
    """Values that keep the scale of what flows through."""
    if name.endswith(("_initialized", "cluster_usage", "alpha")) or ("norm" in name and name.endswith("weight")):
        tensor.fill_(1)
    elif name.endswith((".bias", ".scale")):
        tensor.fill_(0 if name.endswith(".bias") else 0.3)
    else:
        spread = 1.0 if "emb" in name else (tensor.numel() / tensor.shape[0]) ** -0.5
        tensor.normal_(0, spread, generator=draw)
