"""Random adapters for a checkpoint, in the layout of the public fine-tuning code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from agent.moshi.config import LMConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import maps

RANK, SCALING = 3, 1.5


def drawn_adapters(folder: Path, rank: int = RANK) -> dict[str, torch.Tensor]:
    """Random ones for every map of a checkpoint, by the names of the public code."""
    with torch.device("meta"):
        lm = LanguageModel(LMConfig.from_dict(json.loads((folder / "config.json").read_text())))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (outputs, inputs) in maps(lm).items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.1
    return tensors


def adapted(source: Path, folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("cases*"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {
        "lora": True, "lora_rank": RANK, "lora_scaling": SCALING} | config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "lora.safetensors")
    return folder
