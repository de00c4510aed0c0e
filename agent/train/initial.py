"""Weights that a language model's training begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from agent.moshi.layers import linear
from agent.moshi.lm import LanguageModel
from agent.moshi.mimi import Mimi
from agent.train.tokens import Tokens
from agent.train.trainer import TrainingError

_RESIDUAL = 0.5  # of what a residual branch adds, divided among the layers
_DOUBT = 3.0  # frames' worth of the average, in what is told by few of them
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


@dataclass(frozen=True)
class HeardTwice:
    """What the same callers sounded like to other ears before, and to these: N frames."""

    before: Tensor  # codes [codebooks, N]
    now: Tensor  # [codebooks, N]

    @classmethod
    def of(cls, before: Path, now: Path) -> HeardTwice:
        """The calls that two files of tokens.py have in common. Raises DatasetError, TrainingError."""
        earlier, later = Tokens.open(before), Tokens.open(now)
        places = {name: place for place, name in enumerate(later.names)}
        pairs = [(earlier[place].caller, later[places[name]].caller)
                 for place, name in enumerate(earlier.names) if name in places]
        if not pairs:
            raise TrainingError(f"{before}: has no call that is in {now}")
        return cls(*(torch.cat(sides, dim=1) for sides in zip(*pairs, strict=True)))


@torch.no_grad()
def hear_anew(lm: LanguageModel, before: Sequence[Tensor], mimi: Mimi, heard: HeardTwice) -> None:
    """Embed the codes of other ears such that they say to a trained model what its embeddings `before` of the caller's
    codebooks [entries, dim] said at the same moments. The first codebook's entries say what was read while they were
    heard, on average; the acoustic ones', which are many, what is told best by the latents that they add up to."""
    codes, ours = heard.now, lm.emb.all()[lm.config.agent_codebooks:]
    said = [F.embedding(part, weight) for part, weight in zip(heard.before, before, strict=True)]
    first, rest = said[0], torch.stack(said[1:]).sum(0)
    entries = mimi.config.codebook_size
    times = torch.bincount(codes[0], minlength=entries)[:, None]
    sums = torch.zeros(entries, first.shape[1]).index_add_(0, codes[0], first)
    ours[0][:entries] = (sums + _DOUBT * first.mean(0)) / (times + _DOUBT)
    centroids = [book.centroids()[0] for book in mimi.quantizer.rvq_rest.codebooks(len(ours) - 1)]
    latents = torch.stack([F.embedding(part, book) for part, book in zip(codes[1:], centroids, strict=True)]).sum(0)
    latents, middle = latents - latents.mean(0), rest.mean(0)
    power = latents.T @ latents
    ridge = _DOUBT * power.diagonal().mean() / len(latents) * torch.eye(len(power))
    matrix = torch.linalg.solve(power + ridge, latents.T @ (rest - middle))
    ours[0][entries:], begin = before[0][entries:], torch.stack(list(before[1:])).sum(0)[entries:]
    for weight, book, part in zip(ours[1:], centroids, codes[1:], strict=True):
        weight[:entries] = (book - book[part].mean(0)) @ matrix + middle / len(centroids)
        weight[entries:] = begin / len(centroids)  # what a call's first steps read


@torch.no_grad()
def go_on_from(path: Path, lm: LanguageModel, *, agent_codebooks: int | None = None) -> list[Tensor]:
    """Begin with the weights of a model of the same shape. `agent_codebooks`: but for what it heard by, the embeddings
    of its codebooks from that one on, which are returned. Raises TrainingError."""
    try:
        theirs = {name: tensor.float() for name, tensor in load_file(path).items()}
        heard: list[Tensor] = []
        if agent_codebooks is not None:
            while (name := f"emb.{agent_codebooks + len(heard)}.weight") in theirs:
                heard.append(theirs.pop(name))
            for place in range(agent_codebooks, lm.config.audio_streams):
                theirs[f"emb.{place}.weight"] = lm.emb.all()[place]
        lm.load_state_dict(theirs)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: can't be gone on from ({str(error).splitlines()[0]})") from None
    return heard
