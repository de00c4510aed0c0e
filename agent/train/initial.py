"""Weights that a language model's training begins with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from agent.moshi.layers import linear
from agent.moshi.lm import LanguageModel
from agent.moshi.mimi import Mimi
from agent.train.trainer import TrainingError

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


@torch.no_grad()
def hear_likeness(lm: LanguageModel, mimi: Mimi, generator: torch.Generator) -> None:
    """Embed the caller's codes as what the codec makes of them, turned into the model's width: codes that sound alike
    are near each other from the first step on. The first codebook, which knows phonemes, has directions of its own;
    the acoustic ones share theirs, so that a frame's codes add up to the frame's latent."""
    dim, width = lm.config.temporal.dim, mimi.config.dimension
    turned = nn.init.orthogonal_(torch.empty(2 * width, dim), generator=generator)
    heard = lm.emb.all()[lm.config.agent_codebooks:]
    quantizer = mimi.quantizer
    for half, weights, directions in ((quantizer.rvq_first, heard[:1], turned[:width]),
                                      (quantizer.rvq_rest, heard[1:], turned[width:])):
        matrix = half.output_proj.weight[..., 0]
        latents = [linear(book.centroids()[0], matrix) for book in half.codebooks(len(weights))]
        power = sum(float(latent.var(0).sum()) for latent in latents)
        for weight, latent in zip(weights, latents, strict=True):
            weight[:len(latent)] = (latent - latent.mean(0)) @ directions / (2 * power) ** 0.5


@torch.no_grad()
def hear_anew(lm: LanguageModel, mimi: Mimi, generator: torch.Generator) -> None:
    """The same for a trained model that hears by another codec from now on: its caller's codes stay as loud beside the
    rest of what it reads."""
    heard = lm.emb.all()[lm.config.agent_codebooks:]
    before = _power(heard)
    hear_likeness(lm, mimi, generator)
    factor = (before / _power(heard)) ** 0.5
    for weight in heard:
        weight.mul_(factor)


def _power(weights: Sequence[Tensor]) -> float:
    return sum(float(weight.float().var(0).sum()) for weight in weights)


@torch.no_grad()
def go_on_from(path: Path, lm: LanguageModel) -> None:
    """Begin with the weights of a model of the same shape. Raises TrainingError."""
    try:
        lm.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: can't be gone on from ({str(error).splitlines()[0]})") from None
