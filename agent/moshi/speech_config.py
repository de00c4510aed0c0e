"""The config of a text-to-speech checkpoint (Kyutai's delayed streams): a language model whose sound follows its text
by some frames, and what such models have beyond the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.moshi.config import LMConfig
from agent.moshi.config_keys import ConfigError, Keys

_OWN = ("cross_attention", "demux_second_text_stream", "demux_second_stream", "depformer_low_rank_embeddings",
        "conditioners", "fuser")


@dataclass(frozen=True)
class TableConfig:
    """A condition that is one of some values, or none: added to each step's input."""

    name: str
    values: tuple[str, ...]
    bins: int
    dim: int


@dataclass(frozen=True)
class SpeechConfig:
    lm: LMConfig
    delay_frames: int  # from a word in the text to its sound
    words_ahead: int  # that a second text stream tells beforehand; 0: there is no such stream
    low_rank: int | None  # of the depth transformer's embeddings
    tables: tuple[TableConfig, ...]
    speaker: str | None  # the condition that is looked at by cross-attention: a voice
    speaker_dim: int
    positions_scale: float  # of what is added to it; 0: nothing is

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], frame_rate: float) -> SpeechConfig:
        """Read a `config.json`. Raises ConfigError."""
        about = config.get("tts_config")
        if config.get("model_type") != "tts" or not isinstance(about, Mapping):
            raise ConfigError("config: not a text-to-speech model's (model_type tts, tts_config)")
        if about.get("multistream"):
            raise ConfigError("config: tts_config: multistream is not supported")
        lm = LMConfig.from_dict({key: value for key, value in config.items() if key not in _OWN})
        if lm.caller_codebooks or lm.depth is None:
            raise ConfigError("config: a text-to-speech model generates all of its codebooks")
        own = Keys({key: config[key] for key in _OWN if key in config}, "config")
        own.rename("demux_second_stream", "demux_second_text_stream")
        second = own.choice("demux_second_text_stream", (True, False), False)
        ahead = Keys(about, "config: tts_config").integer("second_stream_ahead", default=0, least=0)
        if second is not (ahead > 0):
            raise ConfigError("config: second_stream_ahead and demux_second_text_stream go together")
        tables, speaker, speaker_dim = _conditions(config.get("conditioners") or {})
        fuser = config.get("fuser") or {}
        summed, crossed = list(fuser.get("sum") or []), list(fuser.get("cross") or [])
        if fuser.get("prepend") or sorted(summed) != sorted(table.name for table in tables) or (
                crossed != ([speaker] if speaker else [])):
            raise ConfigError("config: fuser: look-up conditions are summed, one voice is looked at, and nothing else")
        if own.choice("cross_attention", (True, False), False) is not (speaker is not None):
            raise ConfigError("config: cross_attention goes with a voice in fuser's cross")
        scale = float(fuser.get("cross_attention_pos_emb_scale", 1)) if fuser.get("cross_attention_pos_emb") else 0.0
        return cls(
            lm=lm, delay_frames=int(Keys(about, "config: tts_config").number("audio_delay") * frame_rate),
            words_ahead=ahead, low_rank=own.optional_integer("depformer_low_rank_embeddings"), tables=tables,
            speaker=speaker, speaker_dim=speaker_dim, positions_scale=scale)


def _conditions(conditioners: Mapping[str, Any]) -> tuple[tuple[TableConfig, ...], str | None, int]:
    tables, speaker, speaker_dim = [], None, 0
    for name, about in conditioners.items():
        keys = Keys(about, f"config: conditioners: {name}")
        kind = keys.choice("type", ("lut", "tensor"), "")
        inner = Keys(keys.mapping(kind), f"config: conditioners: {name}")
        if kind == "tensor":
            if speaker is not None:
                raise ConfigError("config: conditioners: more than one voice is not supported")
            speaker, speaker_dim = name, inner.integer("dim")
            continue
        inner.only("tokenizer", "noop")
        values = inner.strings("possible_values")
        tables.append(TableConfig(name, values, inner.integer("n_bins"), inner.integer("dim")))
    return tuple(tables), speaker, speaker_dim
