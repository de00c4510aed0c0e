"""Mimi's codebooks in training: centroids that follow the latents, gradients that pass through (van den Oord 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.moshi.layers import linear
from agent.moshi.quantizer import Codebook, Quantizer, ResidualQuantizer
from agent.train.trainer import Team

SHORTEST_USE = 0.1  # of an even share: a centroid that is used less is put elsewhere
_LOOKED_AFTER = 5  # steps between two searches for such centroids
_KMEANS_ROUNDS = 15


def unquantised(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out before there are codebooks: (the sum, the first's part); x [B, frames, dimension]."""
    first, rest = (linear(linear(x, half.input_proj.weight[..., 0]), half.output_proj.weight[..., 0])
                   for half in (quantizer.rvq_first, quantizer.rvq_rest))
    return first + rest, first


@dataclass(frozen=True)
class Following:
    """Centroids move to where latents are, in a step of a training."""

    step: int
    team: Team
    generator: torch.Generator
    decay: float = 0.995  # of the running sums that centroids are made of


def quantised(quantizer: Quantizer, x: Tensor, used: Tensor | None, follow: Following,
              ) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, frames, dimension]; `used` [B]: how many of the acoustic codebooks are, None: all -> the quantised latents,
    the first codebook's part, how far latents are from their centroids. Moves the centroids."""
    first, distance = _through(quantizer.rvq_first, x, None, follow)
    rest, distances = _through(quantizer.rvq_rest, x, used, follow)
    count = len(quantizer.rvq_rest.codebooks())
    return first + rest, first, (distance + distances) / (1 + count)


def _through(half: ResidualQuantizer, x: Tensor, used: Tensor | None, follow: Following,
             ) -> tuple[Tensor, Tensor]:
    z = linear(x, half.input_proj.weight[..., 0])
    residual, total, distance = z, torch.zeros_like(z), torch.zeros((), device=z.device)
    for place, codebook in enumerate(half.codebooks()):
        vectors, half_squares = codebook.centroids()
        codes = (linear(residual, vectors) - half_squares).argmax(dim=-1)
        chosen = vectors[codes].detach()
        distance = distance + F.mse_loss(residual, chosen)
        total = total + (chosen if used is None else chosen * (place < used)[:, None, None])
        _follow(codebook, residual.detach().flatten(0, 1), codes.flatten(), follow)
        residual = residual - chosen
    return linear(z + (total - z).detach(), half.output_proj.weight[..., 0]), distance


@torch.no_grad()
def _follow(codebook: Codebook, latents: Tensor, codes: Tensor, following: Following) -> None:
    """Running means of what was assigned to each centroid; one that nothing is assigned to takes a latent's place."""
    usage, sums = codebook.cluster_usage, codebook.embedding_sum
    new = torch.zeros(len(usage), 1 + latents.shape[1], device=latents.device)
    new[:, 0] = torch.bincount(codes, minlength=len(usage))
    new[:, 1:].index_add_(0, codes, latents)
    following.team.sum_(new)
    usage.mul_(following.decay).add_(new[:, 0], alpha=1 - following.decay)
    sums.mul_(following.decay).add_(new[:, 1:], alpha=1 - following.decay)
    if following.step % _LOOKED_AFTER == 0:
        even = usage.mean()
        dead = usage < SHORTEST_USE * even
        if bool(dead.any()):
            drawn = torch.randint(len(latents), (len(usage),), generator=following.generator).to(latents.device)
            places = following.team.share_(latents[drawn].contiguous())
            sums.copy_(torch.where(dead[:, None], places * even, sums))
            usage.copy_(torch.where(dead, even, usage))


@torch.no_grad()
def begin(quantizer: Quantizer, x: Tensor, team: Team, generator: torch.Generator) -> None:
    """Centroids by k-means of latents x [count, dimension], codebook after codebook; the first process's for all."""
    for half in (quantizer.rvq_first, quantizer.rvq_rest):
        residual = linear(x, half.input_proj.weight[..., 0])
        for codebook in half.codebooks():
            if team.rank == 0:
                centroids, counts = _kmeans(residual, len(codebook.cluster_usage), generator)
                codebook.cluster_usage.copy_(counts)
                codebook.embedding_sum.copy_(centroids * counts[:, None])
                codebook._initialized.fill_(1)  # type: ignore[operator]
            for buffer in codebook.buffers():
                team.share_(buffer)
            vectors, half_squares = codebook.centroids()
            residual = residual - vectors[(linear(residual, vectors) - half_squares).argmax(dim=-1)]


def _kmeans(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centroids [count, width], and how many points are nearest to each."""
    drawn = torch.randperm(len(points), generator=generator) if len(points) >= count else \
        torch.randint(len(points), (count,), generator=generator)
    centroids = points[drawn[:count].to(points.device)].clone()
    counts = torch.ones(count, device=points.device)
    for _ in range(_KMEANS_ROUNDS):
        nearest = (points @ centroids.T - centroids.square().sum(1) / 2).argmax(1)
        counts = torch.bincount(nearest, minlength=count).float()
        means = torch.zeros_like(centroids).index_add_(0, nearest, points) / counts.clamp(min=1)[:, None]
        others = points[torch.randint(len(points), (count,), generator=generator).to(points.device)]
        centroids = torch.where((counts == 0)[:, None], others, means)
    return centroids, counts.clamp(min=1)
