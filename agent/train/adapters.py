"""Low-rank adapters (Hu et al. 2021) on a frozen language model, as Moshi's public fine-tuning code has them.

A map's weight W [out, in] stays as it is; beside it stand lora_A [rank, in], random, and lora_B [out, rank], zero at
first. x becomes x W' + scaling * (x A') B': the sum of the weights is never formed, so that a model of 7 B needs no
second copy of itself and no gradient of a whole weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.moshi.lm import LanguageModel
from agent.moshi.lora import is_embedding, maps


def adapt(lm: LanguageModel, rank: int, scaling: float, generator: torch.Generator, *, embeddings: bool = False
          ) -> nn.Module:
    """Give every linear map of `lm` an adapter; returns what is trained, all of it and in float32.

    Its tensors have the public names. With `embeddings` they are trained as a whole. From then on `lm` computes with
    both, but its own state_dict lacks what was replaced, and it can't be moved to another device.
    """
    lm.requires_grad_(False)
    trained = nn.Module()
    tuned = [name for name in lm.state_dict() if is_embedding(name)] if embeddings else []
    for name, (outputs, inputs) in maps(lm).items():
        bound = inputs**-0.5
        down = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        up = torch.zeros(outputs, rank)
        factors = (_register(trained, f"{name}.lora_A.weight", down.to(lm.device)),
                   _register(trained, f"{name}.lora_B.weight", up.to(lm.device)))
        weight = lm.get_parameter(f"{name}.weight").detach()
        _replace(lm, f"{name}.weight", Adapted(weight, *factors, scaling))
    for name in tuned:
        weight = lm.get_parameter(name).detach()
        _replace(lm, name, Tuned(weight.dtype, _register(trained, name, weight.float().clone())))
    return trained


class _StandIn(ABC):
    """In a weight's place, wherever torch's functions take it: their protocol for what is like a tensor."""

    is_cpu = False  # keeps `linear` on the path of F.linear, the one that knows the protocol

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        x, stand_in, *_ = args
        if not isinstance(stand_in, _StandIn) or function is not stand_in.stands_in:
            return NotImplemented
        return stand_in.applied(x)

    stands_in: Callable[..., Any]

    @abstractmethod
    def applied(self, x: Tensor) -> Tensor:
        """What the function in whose place this stands makes of x."""


class Adapted(_StandIn):
    """A frozen map and its adapter."""

    stands_in = staticmethod(F.linear)

    def __init__(self, weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> None:
        super().__init__(weight.shape, weight.dtype, weight.device)
        self.weight, self.down, self.up, self.scaling = weight, down, up, scaling

    def applied(self, x: Tensor) -> Tensor:
        narrow = F.linear(x, self.down.to(x.dtype))
        return F.linear(x, self.weight) + F.linear(narrow, self.up.to(x.dtype)) * self.scaling


class Tuned(_StandIn):
    """An embedding that is trained as a whole in float32 and gives what the frozen one gave, of its type."""

    stands_in = staticmethod(F.embedding)

    def __init__(self, dtype: torch.dtype, master: Tensor) -> None:
        super().__init__(master.shape, dtype, master.device)
        self.master = master

    def applied(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.master).to(self.dtype)


def _register(root: nn.Module, name: str, tensor: Tensor) -> nn.Parameter:
    """A parameter under a dotted name, in modules that are made as they are needed."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    parameter = nn.Parameter(tensor)
    root.register_parameter(leaf, parameter)
    return parameter


def _replace(lm: LanguageModel, name: str, stand_in: _StandIn) -> None:
    path, _, leaf = name.rpartition(".")
    owner = lm.get_submodule(path)
    delattr(owner, leaf)  # a parameter; what follows is an attribute like any other
    setattr(owner, leaf, stand_in)
