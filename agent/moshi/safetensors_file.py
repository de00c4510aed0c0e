"""Reads tensors one by one from a safetensors file straight into memory that is already there.

The `safetensors` package maps the whole file, which counts as a second copy while a model is being loaded, and its
errors don't say which tensor is wrong. The format: u64 length of a JSON header, the header, the data, little endian.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_WEIGHTS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = {**_WEIGHTS, "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}
_LONGEST_HEADER = 100 * 1000 * 1000


class CheckpointError(ValueError):
    """One line that names the file or the tensor and what is wrong with it."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the file's start
    size: int  # bytes


class SafetensorsFile:
    """An open file and what it holds, by name. Raises CheckpointError if it is missing, truncated or corrupt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from None
        try:
            self.tensors = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_header(self) -> dict[str, Stored]:
        size = self.path.stat().st_size
        start = self._file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _LONGEST_HEADER:
            raise CheckpointError(f"{self.path}: not a safetensors file")
        if 8 + length > size:
            raise CheckpointError(f"{self.path}: truncated within its header ({size} bytes)")
        try:
            header = json.loads(self._file.read(length))
            header.pop("__metadata__", None)
            tensors = {}
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                shape = tuple(int(side) for side in entry["shape"])
                tensors[name] = Stored(str(entry["dtype"]), shape, 8 + length + int(begin), int(end) - int(begin))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{self.path}: corrupt: its header can't be read") from None
        for name, stored in tensors.items():
            if stored.offset < 8 + length or stored.size < 0:
                raise CheckpointError(f"{self.path}: corrupt: tensor {name} lies outside of the data")
            if stored.offset + stored.size > size:
                raise CheckpointError(f"{self.path}: truncated: tensor {name} ends at byte "
                                      f"{stored.offset + stored.size} of {size}")
        return tensors

    def read(self, name: str) -> Tensor:
        """A tensor of any type by itself."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        stored = self.tensors[name]
        target = torch.empty(stored.shape, dtype=self._dtype(name, _DTYPES))
        self._fill(target, name, 0)
        return target

    def read_into(self, target: Tensor, name: str, rows: tuple[int, int] | None = None) -> None:
        """Fill `target` (any device, type and stride) with weights, or with `rows` of their first dimension. An int8
        target takes int8 alone, others take floats alone."""
        dtype = self._dtype(name, {"I8": torch.int8} if target.dtype == torch.int8 else _WEIGHTS)
        direct = target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous()
        buffer = target if direct else torch.empty(target.shape, dtype=dtype)
        self._fill(buffer, name, rows[0] if rows else 0)
        if not direct:
            target.copy_(buffer)

    def _dtype(self, name: str, supported: dict[str, torch.dtype]) -> torch.dtype:
        stored = self.tensors[name]
        if stored.dtype not in supported:
            raise CheckpointError(f"{self.path}: tensor {name} is stored as {stored.dtype}; "
                                  f"supported are {', '.join(supported)}")
        dtype = supported[stored.dtype]
        size = math.prod(stored.shape) * dtype.itemsize
        if stored.size != size:
            raise CheckpointError(f"{self.path}: corrupt: tensor {name} has {stored.size} bytes, its shape "
                                  f"{list(stored.shape)} needs {size}")
        return dtype

    def _fill(self, target: Tensor, name: str, first_row: int) -> None:
        """Read a contiguous tensor's bytes, from a row of the stored tensor on."""
        if target.numel() == 0:
            return
        stored = self.tensors[name]
        row_bytes = stored.size // stored.shape[0] if stored.shape else stored.size
        self._file.seek(stored.offset + first_row * row_bytes)
        view = memoryview(target.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        if self._file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.path}: truncated in tensor {name}")
