"""Look-up conditions: a word from a fixed list, as a vector that is added to the input of each step (Hibiki)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agent.moshi.config import ConditionConfig

CONDITIONS = "condition_provider."  # before their tensors' names; they are float32 always
DEFAULT = "very_good"  # what the reference asks of Hibiki's `description`


class Conditions(nn.Module):
    """Their tables under the official names, and the sum of the values chosen."""

    def __init__(self, conditions: Sequence[ConditionConfig], dim: int) -> None:
        super().__init__()
        self._tables = {condition.name: _Table(condition, dim) for condition in conditions}
        self.conditioners = nn.ModuleDict(self._tables)
        self.chosen: Tensor
        self.register_buffer("chosen", torch.zeros(dim), persistent=False)

    def choose(self, values: Mapping[str, str]) -> None:
        """Raises ValueError, one line, for a value that isn't a condition's."""
        self.chosen = torch.stack([table.vector(values.get(name)) for name, table in self._tables.items()]).sum(dim=0)


class _Table(nn.Module):
    def __init__(self, config: ConditionConfig, dim: int) -> None:
        super().__init__()
        self._config = config
        self.embed = nn.Embedding(config.bins + 1, config.dim)  # the last stands for no value
        self.output_proj = nn.Linear(config.dim, dim, bias=False)
        self.learnt_padding = nn.Parameter(torch.empty(1, 1, dim), requires_grad=False)

    def vector(self, value: str | None) -> Tensor:
        """[dim]; without a value the default, or what the model learnt for none."""
        known = self._config.values
        if value is None and DEFAULT in known:
            value = DEFAULT
        if value is None:
            return self.learnt_padding[0, 0]
        if value not in known:
            raise ValueError(f"{self._config.name} can't be {value!r}, only {', '.join(known)}")
        projected: Tensor = self.output_proj(self.embed.weight[known.index(value)])
        return projected
