"""How large a model is, what a step reads and what a call keeps: from its configs alone, no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agent.moshi.config import ConfigError, LMConfig, MimiConfig
from agent.moshi.generate import GeneratorState
from agent.moshi.kv import PLAIN, KVSettings
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import is_embedding, maps
from agent.moshi.mimi import Mimi
from agent.moshi.quantised import EightBits
from agent.moshi.safetensors_file import CheckpointError

USABLE = 0.9  # of a device's memory; the rest is for libraries and what a step works on


@dataclass(frozen=True)
class Sizes:
    """Bytes and counts of a model whose weights and keys and values are held in given types."""

    lm: LMConfig
    mimi: MimiConfig
    temporal_parameters: int  # with the text's head and the pause heads
    depth_parameters: int
    embedding_parameters: int
    mimi_parameters: int
    weight_bytes: int  # in memory, Mimi's in float32 among them
    step_bytes: int  # weights that a step reads, however many calls it is for
    kv_bytes: int  # a frame of a call
    call_bytes: int  # all that is kept of a call, its whole context filled

    @property
    def parameters(self) -> int:
        return (self.temporal_parameters + self.depth_parameters + self.embedding_parameters + self.mimi_parameters)

    @property
    def context(self) -> int:
        return self.lm.temporal.context or 0

    def calls_in(self, memory_bytes: float) -> int:
        """Calls of full context that fit; 0 where the weights alone don't."""
        return max(0, int((USABLE * memory_bytes - self.weight_bytes) // self.call_bytes))

    def floor_s(self, bytes_per_s: float, calls: int, filled: float) -> float:
        """The least time of a step: what it must read, at the memory's bandwidth; `filled`: the context's share."""
        return (self.step_bytes + calls * filled * self.context * self.kv_bytes) / bytes_per_s


def sizes_of(name: str, config: Mapping[str, Any], mimi_config: Mapping[str, Any], *, dtype: torch.dtype,
             weights: EightBits | None = None, kv: KVSettings = PLAIN) -> Sizes:
    """Raises CheckpointError for configs that can't be read."""
    try:
        lm_config, codec_config = LMConfig.from_dict(config), MimiConfig.from_dict(mimi_config)
    except ConfigError as error:
        raise CheckpointError(f"{name}: {error}") from None
    with torch.device("meta"):
        lm, mimi = LanguageModel(lm_config).to(dtype), Mimi(codec_config)
        state = GeneratorState(lm, 0, 1, kv)  # the scratch slot alone: one call's worth
        codec = [*mimi.encoder_state(0, lm.device).rows().values(), *mimi.decoder_state(0, lm.device).rows().values()]
    matrices = maps(lm)
    parameters = {"temporal": 0, "depth": 0, "embedding": 0}
    weight_bytes = step_bytes = _bytes(mimi.state_dict().values())
    for tensor_name, tensor in lm.state_dict().items():
        part = ("embedding" if is_embedding(tensor_name) else
                "depth" if tensor_name.startswith(("depformer", "linears")) else "temporal")
        parameters[part] += tensor.numel()
        held = tensor.numel() * dtype.itemsize
        if weights and tensor_name.removesuffix(".weight") in matrices:
            held = tensor.numel() + 4 * tensor.shape[0]
        weight_bytes += held
        if part != "embedding" and _is_read(tensor_name, lm_config):  # of embeddings one row each
            step_bytes += held
    pages = [tensor for key, tensor in state.rows().items() if key.startswith("ring.")]
    allocated = state.ring.allocated
    return Sizes(
        lm=lm_config, mimi=codec_config, temporal_parameters=parameters["temporal"],
        depth_parameters=parameters["depth"], embedding_parameters=parameters["embedding"],
        mimi_parameters=_count(mimi), weight_bytes=weight_bytes, step_bytes=step_bytes,
        kv_bytes=_bytes(pages) // allocated, call_bytes=_bytes([*state.rows().values(), *codec]))


def _is_read(name: str, config: LMConfig) -> bool:
    """Depth steps that would predict the caller aren't taken, so their weights aren't read."""
    if config.generated_codebooks == config.agent_codebooks:
        return True
    taken = {config.depth_weights[step] for step in range(config.agent_codebooks)}
    parts = name.split(".")
    if name.startswith("linears."):
        return int(parts[1]) < config.agent_codebooks
    if name.startswith("depformer_in.") and config.depth_inputs > 1:
        return int(parts[1]) in taken
    if name.startswith("depformer.") and ("projs" in name or "gating" in name):
        return int(parts[-2] if "projs" in name else parts[parts.index("gating") + 1]) in taken
    return True


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count(module: nn.Module) -> int:
    def is_weight(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.numel() > 1

    return sum(tensor.numel() for tensor in module.state_dict().values() if is_weight(tensor))
