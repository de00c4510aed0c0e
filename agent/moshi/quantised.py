"""Matrices in 8 bits with a scale for each row: int8 everywhere, fp8 (e4m3) where a GPU multiplies it.

Published int8 checkpoints (bitsandbytes) hold `weight` int8 and `weight_scb` float32, the greatest magnitude of each
row; a row is weight * weight_scb / 127. The reference also rounds what is multiplied to 8 bits; here only weights are.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EightBits = Literal["int8", "fp8"]

TYPES: dict[EightBits, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_GREATEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_KERNEL_STEP = 32  # inputs that the int8 kernel takes at once; past the end of other rows it reads what isn't theirs
_FP8_FROM = (8, 9)  # CUDA's compute capability: Ada, Hopper and later


class Quantised(NamedTuple):
    """A matrix [out, in] whose row r is values[r] * scale[r]."""

    values: Tensor  # int8 or float8_e4m3fn
    scale: Tensor  # [out] float32

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def whole(self) -> Tensor:
        """In float32."""
        return self.values.float() * self.scale[:, None]

    def times(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], of x's type."""
        flat = x.flatten(0, -2)
        if self.values.dtype == torch.int8:
            out = _times_int8(flat, self.values).float() * self.scale
        else:
            out = _times_fp8(flat, self)
        return out.to(x.dtype).view(*x.shape[:-1], len(self.values))


Matrix = Tensor | Quantised


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., n] -> values [..., n] in 8 bits and their scales [...] float32; rows of zeros have scale 1."""
    x = x.float()
    greatest = x.abs().amax(dim=-1)
    scale = torch.where(greatest > 0, greatest / _GREATEST[dtype], 1)
    scaled = x / scale[..., None]
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale


def why_not(kind: EightBits, device: torch.device) -> str | None:
    """Why matrices can't be held so on this device, one line; None if they can."""
    if kind == "int8":
        return None
    wanted = f"fp8 weights need a GPU of compute capability {_FP8_FROM[0]}.{_FP8_FROM[1]} or above (Ada, Hopper)"
    if device.type != "cuda":
        return f"{wanted}, not {device.type}; int8 works everywhere"
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_FROM:
        return f"{wanted}, this one has {capability[0]}.{capability[1]}; int8 works everywhere"
    return None


def _times_int8(x: Tensor, values: Tensor) -> Tensor:
    """Without the scales. The kernel multiplies bf16 by int8 and sums in float32: on a CPU it takes half to a quarter
    of the time of float32, as it reads a quarter of the bytes."""
    if x.shape[1] % _KERNEL_STEP == 0 and _has_kernel(x.device.type):
        return torch._weight_int8pack_mm(x.to(torch.bfloat16).contiguous(), values, _ones(len(values), x.device))
    return F.linear(x, values.to(x.dtype))


@functools.cache
def _ones(count: int, device: torch.device) -> Tensor:
    """Made once for each size, not in each step."""
    return torch.ones(count, dtype=torch.bfloat16, device=device)


@functools.cache
def _has_kernel(device: str) -> bool:
    keys = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}
    return device in keys and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", keys[device]))


def _times_fp8(x: Tensor, matrix: Quantised) -> Tensor:
    """With the scales; x is rounded to fp8 too, each row by a scale of its own, as the tensor cores want it."""
    values, scale = quantise(x, torch.float8_e4m3fn)
    return torch._scaled_mm(values, matrix.values.t(), scale_a=scale[:, None], scale_b=matrix.scale[None],
                            out_dtype=torch.bfloat16)
