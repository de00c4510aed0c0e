"""Causal convolutions as matrix products, time before channels: [B, T, channels].

With the channels innermost a window of the signal is one run of memory, so that a convolution is one copy and one
product with few rows. On a CPU that is 1.2 to 20 times as fast as the library's convolutions, which reorder their
weights at each call; and it never takes the path on which bfloat16 convolutions are wrong in some CPU builds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.layers import linear


class Nested(nn.Module):
    """A module under a dotted name: official checkpoints wrap their convolutions two and three times."""

    def __init__(self, path: str, inner: nn.Module) -> None:
        super().__init__()
        head, _, rest = path.partition(".")
        self.add_module(head, Nested(rest, inner) if rest else inner)


class CausalConv(nn.Module):
    """A strided convolution that looks back alone; `history` positions before the first are given or zero."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1,
                 bias: bool = True) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kernel, self.stride, self.dilation = inputs, outputs, kernel, stride, dilation
        self.history = (kernel - 1) * dilation + 1 - stride  # positions of the past that a step needs
        # in memory [outputs, kernel, inputs], a window's order; by its shape the official [outputs, inputs, kernel]
        self.weight = nn.Parameter(torch.empty(outputs, kernel, inputs).transpose(1, 2), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, history + T, inputs], T a multiple of the stride -> [B, T / stride, outputs]."""
        batch, length, channels = x.shape
        matrix = self.weight.transpose(1, 2).reshape(self.outputs, self.kernel * self.inputs)
        steps = (length - self.history) // self.stride
        if self.kernel > 1 and torch.is_grad_enabled():  # the same windows; those below have a slow gradient
            span = (steps - 1) * self.stride + 1
            x = torch.cat([x[:, at:at + span:self.stride] for at in range(0, self.kernel * self.dilation,
                                                                          self.dilation)], dim=2)
        elif self.kernel > 1:
            row = x.stride(1)
            windows = x.as_strided((batch, steps, self.kernel, channels),
                                   (x.stride(0), self.stride * row, self.dilation * row, 1))
            x = windows.reshape(batch, steps, self.kernel * channels)
        return linear(x, matrix, self.bias)


class CausalUpsampling(nn.Module):
    """A transposed convolution with a kernel of two strides: each position's output overlaps the next one's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.overlap = stride * outputs  # floats that one step hands to the next
        # in memory [kernel, outputs, inputs]; by its shape the official [inputs, outputs, kernel]
        self.weight = nn.Parameter(torch.empty(2 * stride, outputs, inputs).permute(2, 1, 0), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, inputs], before [B, overlap] -> [B, T * stride, outputs], what the next step adds [B, overlap]."""
        matrix = self.weight.permute(2, 1, 0).reshape(-1, self.inputs)
        now, after = linear(x, matrix).chunk(2, dim=-1)  # [B, T, overlap] each
        out = (now + torch.cat([before[:, None], after[:, :-1]], dim=1)).unflatten(-1, (self.stride, self.outputs))
        return (out + self.bias).flatten(1, 2), after[:, -1]


class ChannelwiseUpsampling(nn.Module):
    """The same, each channel by itself and without a bias: from the rate of the codes to the transformer's."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.overlap = stride * channels
        self.weight = nn.Parameter(torch.empty(channels, 1, 2 * stride), requires_grad=False)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """As CausalUpsampling."""
        spread = x[:, :, None] * self.weight[:, 0].t()  # [B, T, 2 * stride, channels]
        now, after = spread.flatten(2).chunk(2, dim=-1)
        out = now + torch.cat([before[:, None], after[:, :-1]], dim=1)
        return out.unflatten(-1, (self.stride, self.channels)).flatten(1, 2), after[:, -1]


def elu_after(history: Tensor, x: Tensor) -> Tensor:
    """ELU of x [B, T, C] behind a history that is ELU's already: [B, history + T, C].

    In place on a part of a bigger tensor, so that it runs row by row: over one run of memory the CPU rounds the last
    few elements in another way than the rest, and a slot's result would depend on its row.
    """
    if torch.is_grad_enabled():
        return torch.cat([history, F.elu(x)], dim=1)
    out = torch.cat([history, x], dim=1)
    F.elu(out[:, history.shape[1]:], inplace=True)
    return out
