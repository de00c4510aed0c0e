"""A stand-in for a GPU's graphs: what a function does is noted operation by operation, and done again in the same
memory.

As a CUDA graph it knows nothing but operations and addresses: whatever Python decided is decided for good, and a number
of the host's stays that number. It also refuses what no capture can do: to wait for the device, to make shapes out of
what a tensor holds, and to bring data from the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
SHAPED_BY_DATA = {"nonzero", "nonzero_static", "masked_select", "unique", "_unique", "_unique2", "unique_dim",
                  "unique_consecutive", "repeat_interleave", "bincount", "histc"}
FROM_THE_HOST = {"lift_fresh", "lift", "set_"}  # torch.tensor([…]) is a copy from the host


class NotCapturable(AssertionError):
    pass


def check(func: Any, args: tuple[Any, ...]) -> None:
    """Raise NotCapturable for an operation that a capture can't hold."""
    name = func.overloadpacket.__name__
    if name in WAITS | SHAPED_BY_DATA | FROM_THE_HOST:
        raise NotCapturable(str(func))
    if name in {"index", "index_put", "index_put_"} and any(
            isinstance(leaf, Tensor) and leaf.dtype in {torch.bool, torch.uint8} for leaf in tree_leaves(args[1])):
        raise NotCapturable(f"{func} by a mask")


class Recording(TorchDispatchMode):
    """Notes operations while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check(func, args)
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @property
    def launches(self) -> int:
        """Operations that do something to memory, which is a kernel or more of each on a GPU."""
        return sum(self.names().values())

    def names(self) -> Counter[str]:
        return Counter(str(func) for func, args, _, out in self.operations if not _is_view(func, args, out))


class Tape:
    """One captured function."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.recording, self.replays = Recording(), 0
        with torch.inference_mode(), self.recording:
            function()

    def __call__(self) -> None:
        self.replays += 1
        with torch.inference_mode():
            for func, args, kwargs, out in self.recording.operations:
                again = func(*args, **kwargs)
                for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                        kept.copy_(new)  # where the operations after it look for it


def _is_view(func: Any, args: tuple[Any, ...], out: Any) -> bool:
    """Whether it only looks at memory in another way."""
    if not any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.returns):
        return False
    given = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    return all(leaf.untyped_storage()._cdata in given for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
