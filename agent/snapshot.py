"""All there is of one slot, on the host: what it takes to go on elsewhere, bit for bit, on the same kind of device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.moshi.kv import SlotRows

_ABOUT = ("model", "device")


@dataclass(frozen=True)
class Snapshot:
    model: str
    device: str  # its kind, as `cuda`
    rows: Mapping[str, Tensor]  # by name, without the dimension of slots

    @classmethod
    def of(cls, rows: Mapping[str, SlotRows], slot: int, model: str, device: str) -> Snapshot:
        """Of tensors whose first dimension are slots."""
        return cls(model, device, {name: tensor[slot].detach().cpu().clone() for name, tensor in rows.items()})

    def check(self, rows: Mapping[str, SlotRows], model: str, device: str) -> None:
        """Raise ValueError, one line, where it doesn't fit into such tensors of another engine."""
        if (self.model, self.device) != (model, device):
            raise ValueError(f"snapshot: of {self.model} on {self.device}, not of {model} on {device}")
        kept = {name: (row.shape, row.dtype) for name, row in self.rows.items()}
        wanted = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in rows.items()}
        for name in sorted(kept.keys() | wanted.keys()):
            if kept.get(name) != wanted.get(name):
                raise ValueError(f"snapshot: {name} is {kept.get(name)}, not {wanted.get(name)}")

    def put(self, rows: Mapping[str, SlotRows], slot: int) -> None:
        """Into tensors that were checked."""
        for name, tensor in rows.items():
            tensor[slot] = self.rows[name].to(tensor.device)

    def write(self, path: Path) -> None:
        """Raises OSError."""
        try:
            save_file({name: row.contiguous() for name, row in self.rows.items()}, path,
                      {"model": self.model, "device": self.device})
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """Raises ValueError for another file, OSError where there is none."""
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if missing := [name for name in _ABOUT if name not in about]:
                    raise ValueError(f"{path}: no snapshot, it doesn't say its {missing[0]}")
                return cls(about["model"], about["device"], {
                    name: file.get_tensor(name) for name in sorted(file.keys())})
        except SafetensorError as error:
            raise ValueError(f"{path}: no snapshot: {error}") from None
