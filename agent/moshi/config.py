"""Frozen configs of Mimi and of the language model, read from official config files.

At the border the keys keep their official names (`dep_q`, `n_q`, `card`); inside, names carry their role.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.moshi.config_keys import ConfigError, Keys

__all__ = [
    "EOS_TOKEN", "EPAD_TOKEN", "FIRST_7B", "FIRST_MIMI", "LORA_FILE", "NOT_THE_LMS", "PAD_TOKEN", "UNGENERATED",
    "ZERO_TOKEN", "ConditionConfig", "ConfigError", "LMConfig", "LoraConfig", "MimiConfig", "TransformerConfig",
]

ZERO_TOKEN = -1  # in a stream: no input here, its embedding is zero
UNGENERATED = -2  # in an output: nothing yet
EPAD_TOKEN = 0
EOS_TOKEN = 2
PAD_TOKEN = 3


@dataclass(frozen=True)
class TransformerConfig:
    """One stack of layers. `gated` uses SiLU gating and RMS norms, else GELU, layer norms and layer scales (Mimi)."""

    dim: int
    layers: int
    heads: int
    hidden: int  # width inside the feed-forward, after gating
    context: int | None  # positions that a query sees, itself included; None: all
    max_period: float | None  # of the rotary embedding; None: no positions at all
    gated: bool
    norm_eps: float
    weight_sets: int = 0  # of the depth transformer, which has a set of weights per step; 0: one for all steps
    layer_scale: bool = False


@dataclass(frozen=True)
class MimiConfig:
    sample_rate: int
    frame_rate: float
    channels: int  # of the convolutions at the input, doubled at each down-sampling
    dimension: int
    ratios: tuple[int, ...]  # of the decoder, in its order; the encoder has them reversed
    kernel: int
    residual_kernel: int
    last_kernel: int
    residual_layers: int
    dilation_base: int
    compress: int
    codebooks: int
    codebook_size: int
    codebook_dimension: int
    transformer: TransformerConfig

    @property
    def frame_samples(self) -> int:
        return int(self.sample_rate / self.frame_rate)

    @property
    def positions_per_frame(self) -> int:
        """Steps of the transformers in one frame: they run faster than the codes, 25 to 12.5 Hz."""
        return self.frame_samples // math.prod(self.ratios)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MimiConfig:
        """Read a `mimi_config.json`. Raises ConfigError for an unknown, missing or unsupported key."""
        top = Keys(config, "Mimi")
        seanet = Keys(top.mapping("seanet"), "Mimi's seanet")
        quantizer = Keys(top.mapping("quantizer"), "Mimi's quantizer")
        transformer = Keys(top.mapping("transformer"), "Mimi's transformer")
        top.only("channels", 1)
        dimension = seanet.integer("dimension")
        for keys, rules in ((seanet, _SEANET_RULES), (transformer, _MIMI_TRANSFORMER_RULES)):
            for key, value in rules.items():
                keys.only(key, value, missing=value)
        for key in ("input_dimension", "output_dimension"):
            quantizer.only(key, dimension)
        transformer.only("d_model", dimension)
        transformer.only("input_dimension", dimension)
        transformer.only("output_dimensions", [dimension])
        if transformer.number("layer_scale") <= 0:
            raise ConfigError("Mimi's transformer: layer_scale must be positive")
        for ignored in ("disable_norm_outer_blocks",):
            seanet.skip(ignored)
        result = cls(
            sample_rate=top.integer("sample_rate"),
            frame_rate=top.number("frame_rate"),
            channels=seanet.integer("n_filters"),
            dimension=dimension,
            ratios=seanet.integers("ratios"),
            kernel=seanet.integer("kernel_size"),
            residual_kernel=seanet.integer("residual_kernel_size"),
            last_kernel=seanet.integer("last_kernel_size"),
            residual_layers=seanet.integer("n_residual_layers"),
            dilation_base=seanet.integer("dilation_base"),
            compress=seanet.integer("compress"),
            codebooks=quantizer.integer("n_q"),
            codebook_size=quantizer.integer("bins"),
            codebook_dimension=quantizer.integer("dimension"),
            transformer=TransformerConfig(
                dim=dimension,
                layers=transformer.integer("num_layers"),
                heads=transformer.integer("num_heads"),
                hidden=transformer.integer("dim_feedforward"),
                context=transformer.integer("context"),
                max_period=transformer.number("max_period"),
                gated=False,
                norm_eps=1e-5,
                layer_scale=True,
            ),
        )
        for keys in (top, seanet, quantizer, transformer):
            keys.end()
        _check_heads(result.transformer, "Mimi's transformer")
        result._check()
        return result

    def _check(self) -> None:
        hop = math.prod(self.ratios)
        if not self.ratios or self.sample_rate / self.frame_rate != self.frame_samples:
            raise ConfigError("Mimi: a frame must be a whole number of samples")
        if self.frame_samples % hop:
            raise ConfigError(f"Mimi: ratios {list(self.ratios)} don't divide a frame of {self.frame_samples} samples")
        if self.positions_per_frame < 2:
            raise ConfigError("Mimi: frame_rate must be below the rate that ratios give")
        if self.codebooks < 2:
            raise ConfigError("Mimi's quantizer: n_q must be at least 2")
        if self.residual_kernel % 2 == 0 or self.channels % self.compress:
            raise ConfigError("Mimi's seanet: residual_kernel_size must be odd and compress divide n_filters")


@dataclass(frozen=True)
class ConditionConfig:
    """A look-up condition: one of `values`, or nothing, is a vector that is added to each step's input (Hibiki)."""

    name: str
    values: tuple[str, ...]
    bins: int
    dim: int


@dataclass(frozen=True)
class LMConfig:
    """The language model: a temporal transformer over frames, a depth transformer over one frame's codebooks.

    Streams are text first, then `streams - 1` of audio: the agent's, then the caller's. `delays` has one of each.
    """

    temporal: TransformerConfig
    depth: TransformerConfig | None  # None: a model that writes text alone
    depth_weights: tuple[int, ...]  # which set of weights each depth step uses
    depth_inputs: int  # projections from the temporal into the depth transformer
    text_card: int
    text_card_out: int
    audio_card: int
    generated_codebooks: int  # depth steps
    agent_codebooks: int  # of these, the agent's own: they are fed back and decoded
    caller_codebooks: int
    delays: tuple[int, ...]
    extra_heads: int
    extra_classes: int
    conditions: tuple[ConditionConfig, ...] = ()

    @property
    def audio_streams(self) -> int:
        return self.agent_codebooks + self.caller_codebooks

    @property
    def streams(self) -> int:
        return 1 + self.audio_streams

    @property
    def largest_delay(self) -> int:
        return max(self.delays)

    @property
    def text_initial_token(self) -> int:
        return self.text_card

    @property
    def audio_initial_token(self) -> int:
        return self.audio_card

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LMConfig:
        """Read a `config.json`; one without content means the first 7B.

        Raises ConfigError for an unknown, missing or unsupported key.
        """
        keys = Keys({k: v for k, v in config.items() if k not in NOT_THE_LMS}, "config")
        if keys.empty:
            keys = Keys(dict(FIRST_7B), "config")
        keys.rename("demux_second_stream", "demux_second_text_stream")
        keys.skip("depformer_causal")
        dim, audio, generated = keys.integer("dim"), keys.integer("n_q"), keys.integer("dep_q", least=0)
        for key, (expected, missing) in _LM_RULES.items():
            keys.only(key, expected, missing=missing)
        conditions = _conditions(keys)
        keys.skip("existing_text_padding_id", PAD_TOKEN)
        keys.skip("existing_text_end_padding_id", EPAD_TOKEN)
        scale, norm = keys.number("hidden_scale", default=4), keys.choice("norm", _NORM_EPS, "layer_norm")
        temporal = TransformerConfig(
            dim=dim, layers=keys.integer("num_layers"), heads=keys.integer("num_heads"),
            hidden=_gated_width(dim, int(scale * dim)), context=keys.integer("context"),
            max_period=keys.number("max_period", default=10000), gated=True, norm_eps=_NORM_EPS[norm])
        depth, depth_weights, depth_inputs = _depth(keys, generated, scale, _NORM_EPS[norm])
        delays = keys.integers("delays", least=0)
        agent, caller = _whose(audio, generated, delays)
        text_card = keys.integer("text_card")
        result = cls(
            temporal=temporal, depth=depth, depth_weights=depth_weights, depth_inputs=depth_inputs,
            text_card=text_card, text_card_out=keys.integer("text_card_out", default=text_card),
            audio_card=keys.integer("card"), generated_codebooks=generated, agent_codebooks=agent,
            caller_codebooks=caller, delays=delays,
            extra_heads=keys.integer("extra_heads_num_heads", default=0, least=0),
            extra_classes=keys.integer("extra_heads_dim", default=6), conditions=conditions)
        keys.end()
        if len(delays) != audio + 1:
            raise ConfigError(f"config: delays has {len(delays)} entries, n_q {audio} asks for {audio + 1}")
        if result.text_card_out <= PAD_TOKEN:
            raise ConfigError(f"config: text_card must be above {PAD_TOKEN}, the token of padding")
        _check_heads(temporal, "config")
        if depth is not None:
            _check_heads(depth, "config: depformer")
        return result


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside a checkpoint's weights: each map grows by scaling * B @ A, see lora.py."""

    name: str  # of their file
    rank: int
    scaling: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LoraConfig | None:
        """What a `config.json` says of them; None without `lora`. Raises ConfigError."""
        keys = Keys({key: config[key] for key in ("lora", "lora_rank", "lora_scaling") if key in config}, "config")
        if not keys.choice("lora", (True, False), False):
            if config.get("lora_name"):
                raise ConfigError("config: lora_name is there, but lora is not true")
            return None
        name = config.get("lora_name") or LORA_FILE
        if not isinstance(name, str):
            raise ConfigError(f"config: lora_name must be a file's name, not {name!r}")
        return cls(name, keys.integer("lora_rank", default=128), keys.number("lora_scaling", default=2.0))


LORA_FILE = "lora.safetensors"  # as the public fine-tuning code calls it

# Keys of a config.json that say something about the files or the use, not about the language model.
NOT_THE_LMS = frozenset({
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "lm_gen_config",
    "tts_config", "stt_config", "model_id", "lora", "lora_rank", "lora_scaling", "version",
    "voice_name", "voice_config_name", "roles",
    "quantize",  # the file itself says which of its matrices are in 8 bits
})

FIRST_7B: Mapping[str, Any] = {
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}

FIRST_MIMI: Mapping[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 512, "causal": True, "n_filters": 64, "n_residual_layers": 1,
        "activation": "ELU", "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7,
        "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none", "pad_mode": "constant",
        "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048, "input_dimension": 512, "output_dimension": 512},
    "transformer": {
        "d_model": 512, "num_heads": 8, "num_layers": 8, "causal": True, "layer_scale": 0.01, "context": 250,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 2048, "input_dimension": 512,
        "output_dimensions": [512],
    },
}

_NORM_EPS = {"rms_norm_f32": 1e-8}

_SEANET_RULES: Mapping[str, Any] = {
    "channels": 1, "causal": True, "activation": "ELU", "norm": "none", "pad_mode": "constant", "true_skip": True,
}

_MIMI_TRANSFORMER_RULES: Mapping[str, Any] = {
    "causal": True, "conv_layout": True, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope",
}

# key -> (the one value that is supported, what its absence means). All published checkpoints of the facts agree here.
_LM_RULES: Mapping[str, tuple[Any, Any]] = {
    "causal": (True, True), "layer_scale": (None, None), "gating": ("silu", "none"),
    "positional_embedding": ("rope", "sin"), "cross_attention": (False, False), "kv_repeat": (1, 1),
    "norm_emb": (False, False), "bias_proj": (False, False), "demux_second_text_stream": (False, False),
}

_DEPTH_RULES: Mapping[str, tuple[Any, Any]] = {
    "depformer_weights_per_step": (True, False), "depformer_pos_emb": ("none", "sin"),
    "depformer_layer_scale": (None, None), "depformer_gating": ("silu", "silu"),
    "depformer_low_rank_embeddings": (None, None), "depformer_norm": (None, None),
}

_DEPTH_KEYS = (
    "depformer_dim", "depformer_dim_feedforward", "depformer_num_heads", "depformer_num_layers",
    "depformer_multi_linear", "depformer_context", "depformer_max_period", "depformer_weights_per_step_schedule",
    *_DEPTH_RULES,
)


def _depth(keys: Keys, steps: int, scale: float, norm_eps: float
           ) -> tuple[TransformerConfig | None, tuple[int, ...], int]:
    if steps == 0:  # a config may describe a depth transformer that the model doesn't have
        for key in _DEPTH_KEYS:
            keys.skip(key)
        return None, (), 0
    for key, (expected, missing) in _DEPTH_RULES.items():
        keys.only(key, expected, missing=missing)
    for key in ("depformer_context", "depformer_max_period"):  # without positions they have no effect
        keys.skip(key)
    dim = keys.integer("depformer_dim")
    schedule = keys.optional_integers("depformer_weights_per_step_schedule") or tuple(range(steps))
    if len(schedule) != steps:
        raise ConfigError(f"config: depformer_weights_per_step_schedule has {len(schedule)} entries, dep_q is {steps}")
    feedforward = keys.optional_integer("depformer_dim_feedforward") or int(scale * dim)
    depth = TransformerConfig(
        dim=dim, layers=keys.integer("depformer_num_layers"), heads=keys.integer("depformer_num_heads"),
        hidden=_gated_width(dim, feedforward), context=None, max_period=None, gated=True, norm_eps=norm_eps,
        weight_sets=max(schedule) + 1)
    per_step = keys.choice("depformer_multi_linear", (True, False), False)
    return depth, schedule, depth.weight_sets if per_step else 1


def _conditions(keys: Keys) -> tuple[ConditionConfig, ...]:
    """The look-up conditions that the fuser sums in; other kinds of conditioning are refused."""
    found = []
    for name, entry in keys.objects("conditioners").items():
        where = f"config: conditioners: {name}"
        kind = Keys(entry, where)
        kind.only("type", "lut")
        table = Keys(kind.mapping("lut"), where)
        table.only("tokenizer", "noop")
        table.skip("init_scale")
        found.append(ConditionConfig(name, table.strings("possible_values"), table.integer("n_bins"),
                                     table.integer("dim")))
        kind.end()
        table.end()
        if len(found[-1].values) > found[-1].bins:
            raise ConfigError(f"{where}: n_bins {found[-1].bins} are fewer than its possible_values")
    fuser = dict(keys.objects("fuser", values=(list, bool, int, float)))
    summed = fuser.pop("sum", [])
    for key in ("cross_attention_pos_emb", "cross_attention_pos_emb_scale"):
        fuser.pop(key, None)
    if any(fuser.values()):
        raise ConfigError(f"config: fuser: {next(key for key, value in fuser.items() if value)} is not supported, only "
                          "sum")
    if sorted(summed) != sorted(condition.name for condition in found):
        raise ConfigError(f"config: fuser: sum names {summed}, the conditioners are "
                          f"{[condition.name for condition in found]}")
    return tuple(found)


def _gated_width(dim: int, feedforward: int) -> int:
    """The width of gating's two halves, chosen so that it has about as many weights as a plain feed-forward."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


def _whose(audio: int, generated: int, delays: tuple[int, ...]) -> tuple[int, int]:
    """How many audio streams are the agent's and the caller's.

    The agent's are generated, the rest is the caller's; but a model that generates every stream of two equal
    halves, each with a semantic codebook ahead of its acoustic ones, predicts the caller too (PersonaPlex).
    """
    half = audio // 2
    two_voices = (generated == audio and audio % 2 == 0 and half > 1 and delays[1:1 + half] == delays[1 + half:]
                  and delays[1] < delays[2])
    if two_voices:
        return half, half
    if generated > audio:
        raise ConfigError(f"config: dep_q {generated} is more than n_q {audio}")
    return generated, audio - generated


def _check_heads(config: TransformerConfig, where: str) -> None:
    if config.dim % config.heads or (config.dim // config.heads) % 2:
        raise ConfigError(f"{where}: {config.heads} heads don't divide dim {config.dim} into even parts")
