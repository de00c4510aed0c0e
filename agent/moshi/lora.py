"""Low-rank adapters (Hu et al. 2021) beside a checkpoint, in the layout of Moshi's public fine-tuning code.

An adapted map X has `X.lora_A.weight` [rank, in] and `X.lora_B.weight` [out, rank]; its weight [out, in] grows by
scaling * B @ A. All steps' attention projections may stand under one name, as in checkpoints. A file may also hold
embeddings that were tuned as a whole: they replace the checkpoint's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.moshi.config import LoraConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.safetensors_file import CheckpointError, SafetensorsFile

DOWN, UP = "lora_A.weight", "lora_B.weight"

_PROJECTION = re.compile(r"(.*self_attn\.)(in|out)_projs\.(\d+)")


def maps(lm: nn.Module) -> dict[str, tuple[int, int]]:
    """Names of all linear maps, without `.weight`, and their outputs and inputs."""
    return {name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
            for name, tensor in lm.state_dict().items() if name.endswith(".weight") and not is_embedding(name)}


def is_embedding(name: str) -> bool:
    return (name.startswith(("emb.", "text_emb.", "depformer_emb.", "depformer_text_emb."))
            or name.endswith(".embed.weight"))  # a condition's


class Adapters:
    """A file of adapters, checked against the model that they are for; it stays open until they are merged.

    Raises CheckpointError for a tensor that is missing, misshapen, of another rank or of another model.
    """

    def __init__(self, file: SafetensorsFile, config: LoraConfig, lm: LanguageModel) -> None:
        self._file, self._config = file, config
        self._pairs: dict[str, tuple[_Rows, _Rows]] = {}
        self._whole: list[str] = []
        used: set[str] = set()
        for name, tensor in lm.state_dict().items():
            if is_embedding(name) and name in file.tensors:
                self._check(name, tuple(tensor.shape))
                self._whole.append(name)
                used.add(name)
        for name, (outputs, inputs) in maps(lm).items():
            steps = _steps(lm, name)
            down = self._found(name, DOWN, steps, config.rank, inputs)
            up = self._found(name, UP, steps, outputs, config.rank)
            if down is None and up is None:
                continue
            if down is None or up is None:
                raise CheckpointError(f"{file.path}: tensor {name}.{UP if down else DOWN} is missing")
            self._pairs[name] = down, up
            used |= {down.name, up.name}
        unexpected = sorted(set(file.tensors) - used)
        if unexpected:
            more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
            raise CheckpointError(f"{file.path}: unexpected tensor {unexpected[0]}{more}: the model has no map for it")
        if not self._pairs:
            raise CheckpointError(f"{file.path}: has no adapters")

    def changes(self, name: str) -> bool:
        """Whether a tensor of the model is another one with them."""
        return name in self._whole or name.removesuffix(".weight") in self._pairs

    @torch.no_grad()
    def merge_into(self, name: str, weight: Tensor) -> None:
        """Change a tensor of the model, by its name; sums and products are float32, on the tensor's device."""
        if name in self._whole:
            self._file.read_into(weight, name)
        elif pair := self._pairs.get(name.removesuffix(".weight")):
            down, up = (self._read(rows, weight.device) for rows in pair)
            weight.copy_(torch.addmm(weight.float(), up, down, alpha=self._config.scaling))

    def _found(self, name: str, part: str, steps: int, outputs: int, inputs: int) -> _Rows | None:
        """Where a factor [outputs, inputs] of a map stands, by itself or among those of all steps."""
        match = _PROJECTION.fullmatch(name)
        whole = f"{match[1]}{match[2]}_proj.{part}" if match else ""
        if f"{name}.{part}" in self._file.tensors:
            self._check(f"{name}.{part}", (outputs, inputs))
            return _Rows(f"{name}.{part}", None, (outputs, inputs))
        if match and whole in self._file.tensors:
            self._check(whole, (steps * outputs, inputs))
            first = int(match[3]) * outputs
            return _Rows(whole, (first, first + outputs), (outputs, inputs))
        return None

    def _check(self, name: str, expected: tuple[int, ...]) -> None:
        shape = self._file.tensors[name].shape
        if shape != expected:
            raise CheckpointError(f"{self._file.path}: tensor {name} has shape {list(shape)}, the model and lora_rank "
                                  f"{self._config.rank} ask for {list(expected)}")

    def _read(self, rows: _Rows, device: torch.device) -> Tensor:
        target = torch.empty(rows.shape, device=device)
        self._file.read_into(target, rows.name, rows.rows)
        return target


@dataclass(frozen=True)
class _Rows:
    """A tensor of a file, or some rows of it."""

    name: str
    rows: tuple[int, int] | None
    shape: tuple[int, int]


def _steps(lm: LanguageModel, name: str) -> int:
    """How many steps have projections of their own beside this one."""
    match = _PROJECTION.fullmatch(name)
    return 1 if match is None else len(lm.get_submodule(f"{match[1]}{match[2]}_projs"))  # type: ignore[arg-type]
