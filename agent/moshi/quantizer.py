"""Mimi's split residual quantiser: one semantic codebook, and acoustic ones that quantise what is left in turn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agent.moshi.config import MimiConfig
from agent.moshi.layers import Weight, linear


class Quantizer(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.rvq_first = ResidualQuantizer(config, 1)
        self.rvq_rest = ResidualQuantizer(config, config.codebooks - 1)

    def encode(self, x: Tensor, codebooks: int) -> Tensor:
        """Latents [..., dimension] -> codes [..., codebooks]; both halves start from the same latent."""
        if codebooks == 0:  # a model that hears nobody
            return x.new_zeros(*x.shape[:-1], 0, dtype=torch.int64)
        codes = self.rvq_first.encode(x, 1)
        return codes if codebooks == 1 else torch.cat([codes, self.rvq_rest.encode(x, codebooks - 1)], dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [..., codebooks] -> latents [..., dimension]."""
        x = self.rvq_first.decode(codes[..., :1])
        return x if codes.shape[-1] == 1 else x + self.rvq_rest.decode(codes[..., 1:])


class ResidualQuantizer(nn.Module):
    def __init__(self, config: MimiConfig, codebooks: int) -> None:
        super().__init__()
        self.input_proj = Weight(config.codebook_dimension, config.dimension, 1)
        self.output_proj = Weight(config.dimension, config.codebook_dimension, 1)
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList(_Layer(config) for _ in range(codebooks))

    def codebooks(self, count: int | None = None) -> list[Codebook]:
        """The first `count` of them, or all."""
        layers: nn.ModuleList = self.vq.layers  # type: ignore[assignment]
        return [layer._codebook for layer in list(layers)[:count]]  # type: ignore[misc]

    def encode(self, x: Tensor, codebooks: int) -> Tensor:
        residual = linear(x, self.input_proj.weight[..., 0])
        codes = []
        for codebook in self.codebooks(codebooks):
            vectors, half_squares = codebook.centroids()
            # the nearest centroid c has the greatest x.c - |c|^2 / 2
            code = (linear(residual, vectors) - half_squares).argmax(dim=-1)
            residual = residual - vectors[code]
            codes.append(code)
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        total = None
        for i, codebook in enumerate(self.codebooks(codes.shape[-1])):
            vectors = codebook.centroids()[0][codes[..., i]]
            total = vectors if total is None else total + vectors
        assert total is not None
        return linear(total, self.output_proj.weight[..., 0])


class _Layer(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self._codebook = Codebook(config)


class Codebook(nn.Module):
    """Centroids as training keeps them: running sums of what was assigned, and how much that was."""

    cluster_usage: Tensor
    embedding_sum: Tensor

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        for name, shape in (("_initialized", (1,)), ("cluster_usage", (config.codebook_size,)),
                            ("embedding_sum", (config.codebook_size, config.codebook_dimension))):
            self.register_buffer(name, torch.empty(shape))
        self._made: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def centroids(self) -> tuple[Tensor, Tensor]:
        """[codebook_size, codebook_dimension] and half their squared lengths; made anew when the buffers change."""
        sums, usage = self.embedding_sum, self.cluster_usage
        version = (*(0 if t.is_inference() else t._version for t in (sums, usage)), id(sums), id(usage))
        if self._made is None or self._made[0] != version:
            vectors = sums / usage.clamp(min=1e-5)[:, None]
            self._made = (version, vectors, vectors.square().sum(dim=-1) / 2)
        return self._made[1], self._made[2]
