"""Weights of a language model that has learnt nothing yet."""

from __future__ import annotations

import torch
from torch import nn

from agent.moshi.lm import LanguageModel

_RESIDUAL = 0.5  # of what a residual branch adds, divided among the layers
_CODE = 0.5  # of what one of many codes adds to the sum that the model reads, the text's being 1


@torch.no_grad()
def initialise(lm: LanguageModel, generator: torch.Generator) -> None:
    """Keeps the scale of what flows through; residual branches begin small."""
    config = lm.config
    for name, weight in lm.named_parameters():
        if name.endswith(".alpha"):
            weight.fill_(1)
            continue
        std = weight.shape[1] ** -0.5
        if name.startswith("emb."):
            std *= _CODE
        elif "out_projs" in name or "linear_out" in name:
            stack = config.depth if name.startswith("depformer.") and config.depth else config.temporal
            std *= _RESIDUAL * stack.layers ** -0.5
        nn.init.normal_(weight, std=std, generator=generator)
