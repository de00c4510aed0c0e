"""Muon (Jordan et al., 2024): matrices are moved alike in all directions.

torch has it, too, in bfloat16 alone: on a CPU that can't multiply it that takes seconds a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from agent.train.precision import has_bfloat16

_MOMENTUM = 0.95
_STEPS = 5
# Of a polynomial a x + b x^3 + c x^5 that takes all of (0, 1] near 1 in so many steps, as in the authors' own code.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """For matrices alone, at AdamW's rates: an update's root mean square is 0.2 of the rate, as AdamW's is (Liu et al.,
    2025)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                state["momentum_buffer"].lerp_(matrix.grad, 1 - _MOMENTUM)
                direction = orthogonal(matrix.grad.lerp(state["momentum_buffer"], _MOMENTUM),
                                       half=has_bfloat16(matrix.device))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * max(matrix.shape) ** 0.5 * group["lr"])


def orthogonal(matrix: Tensor, *, half: bool) -> Tensor:
    """About the orthogonal matrix nearest to one [rows, columns]: its singular values all near 1 (Newton and Schulz's
    iteration). `half`: in bfloat16."""
    x: Tensor = matrix.bfloat16() if half else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=_TINY)
    for _ in range(_STEPS):
        square = x @ x.T
        x = _A * x + (_B * square + _C * square @ square) @ x
    found: Tensor = x.T if tall else x
    return found.to(matrix.dtype)
