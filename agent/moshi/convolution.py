"""Causal convolutions as matrix products, time before channels: [B, T, channels].

With the channels innermost a window of the signal is one run of memory, so that a convolution is one copy and one
product with few rows. On a CPU that is 1.2 to 20 times as fast as the library's convolutions, which reorder their
weights at each call; and it never takes the path on which bfloat16 convolutions are wrong in some CPU builds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.layers import linear

_BLOCK_FLOATS, _BLOCK_POSITIONS = 48, 16  # of a signal that is cut into blocks, where its convolution looks back less

_WIDE = 128  # channels


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
        if self.kernel > 1:
            row = x.stride(1)
            windows = x.as_strided((batch, steps, self.kernel, channels),
                                   (x.stride(0), self.stride * row, self.dilation * row, 1))
            x = windows.reshape(batch, steps, self.kernel * channels)
        return linear(x, matrix, self.bias)

    def over_blocks(self, history: Tensor, x: Tensor) -> Tensor:
        """The same for training, where windows and their gradient would cost most of the time: a signal cut into blocks
        needs no windows, since a block's outputs depend on it and on the block before it alone. One product gives what
        each block adds to its own outputs and to the next one's.

        history [B, history, inputs], x [B, T, inputs] -> [B, T / stride, outputs].
        """
        if self.stride == self.dilation == 1 and self.inputs >= _WIDE:  # few positions, and a block's matrix is big
            windows = torch.cat([history.to(x.dtype), x], dim=1).unfold(1, self.kernel, 1)
            return linear(windows.flatten(2), self.weight.reshape(self.outputs, -1), self.bias)
        steps = x.shape[1] // self.stride
        outputs = max(-(-self.history // self.stride),  # of a block
                      min(_BLOCK_FLOATS // self.inputs, _BLOCK_POSITIONS) // self.stride, 1)
        positions = outputs * self.stride
        blocks = -(-steps // outputs)
        lead, tail = positions - self.history, blocks * positions - x.shape[1]
        parts = [x.new_zeros(len(x), lead, self.inputs), history.to(x.dtype), x, x.new_zeros(len(x), tail, self.inputs)]
        x = torch.cat(parts, dim=1).view(len(x), blocks + 1, positions * self.inputs)
        span = (self.kernel - 1) * self.dilation + 1
        taps: Tensor = self.weight
        if self.dilation > 1:
            taps = F.pad(taps[..., None], (0, self.dilation - 1)).flatten(2)[..., :span]
        taps = taps.transpose(1, 2).reshape(self.outputs, -1)  # [outputs, span * inputs]
        room = (2 * positions - span) * self.inputs
        before = [(lead + at * self.stride) * self.inputs for at in range(outputs)]
        # [outputs of a block, outputs, 2 * a block's floats]
        both = torch.stack([F.pad(taps, (left, room - left)) for left in before])
        matrix = torch.cat(both.flatten(0, 1).chunk(2, dim=1))
        bias = None if self.bias is None else torch.cat([torch.zeros_like(self.bias).repeat(outputs),
                                                         self.bias.repeat(outputs)])
        out: Tensor = _Overlapped.apply(linear(x, matrix, bias))  # type: ignore[no-untyped-call]
        return out.view(len(x), blocks * outputs, self.outputs)[:, :steps]


class _Overlapped(torch.autograd.Function):
    """The sum of what each block makes and what the block before adds to it: [B, 1 + blocks, 2 n] -> [B, blocks, n].
    Written out, since the library's gradient of slices fills and adds up whole tensors of zeros."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        half = both.shape[2] // 2
        return both[:, :-1, :half] + both[:, 1:, half:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        batch, blocks, half = gradient.shape
        both = gradient.new_empty(batch, blocks + 1, 2 * half)
        both[:, :-1, :half] = both[:, 1:, half:] = gradient
        both[:, -1, :half] = both[:, 0, half:] = 0
        return both


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
        if torch.is_grad_enabled():
            return self._to_learn(x, before, matrix)
        now, after = linear(x, matrix).chunk(2, dim=-1)  # [B, T, overlap] each
        out = (now + torch.cat([before[:, None], after[:, :-1]], dim=1)).unflatten(-1, (self.stride, self.outputs))
        return (out + self.bias).flatten(1, 2), after[:, -1]

    def _to_learn(self, x: Tensor, before: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The same with a cheaper gradient."""
        bias = torch.cat([torch.zeros_like(before[0]), self.bias.repeat(self.stride)])
        both = linear(F.pad(x, (0, 0, 1, 0)), torch.cat(matrix.chunk(2)[::-1]), bias)
        out: Tensor = _Overlapped.apply(both)  # type: ignore[no-untyped-call]
        if bool(before.any()):
            out = torch.cat([out[:, :1] + before[:, None].to(out.dtype), out[:, 1:]], dim=1)
        return out.unflatten(-1, (self.stride, self.outputs)).flatten(1, 2), both[:, -1, :self.overlap]


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
