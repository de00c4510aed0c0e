"""In which type a training multiplies."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether it multiplies bfloat16 by itself. A CPU that doesn't takes 18 times as long as for float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def mixed(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))
