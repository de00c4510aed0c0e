"""Official checkpoints, from a folder or a Hugging Face repository, into modules.

The rules of names, defaults and layouts are those of the published repositories; see config.py for the configs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agent.moshi.conditions import CONDITIONS
from agent.moshi.config import (
    EOS_TOKEN,
    FIRST_7B,
    FIRST_MIMI,
    NOT_THE_LMS,
    PAD_TOKEN,
    ConfigError,
    LMConfig,
    LoraConfig,
    MimiConfig,
)
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import Adapters, maps
from agent.moshi.mimi import Mimi
from agent.moshi.quantised import TYPES, EightBits, Quantised, quantise, why_not
from agent.moshi.safetensors_file import CheckpointError, SafetensorsFile
from agent.moshi.source import BUNDLED, ModelFile, Source, Told

__all__ = [
    "BUNDLED", "CheckpointError", "Codecs", "Model", "ModelFile", "fetch_files", "known_configs", "load_codecs",
    "load_model",
]

_MOSHI_FILE, _MOSHI_Q8_FILE = "model.safetensors", "model.q8.safetensors"
_MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
VOICES_FILE = "voices.tgz"  # of models that take a voice by prompt
_TEXT_FILE = "tokenizer_spm_32k_3.model"

# Buffers of the quantiser that early checkpoints call otherwise.
_OLD_NAMES = {"inited": "_initialized", "cluster_size": "cluster_usage", "embed_avg": "embedding_sum",
              "embed_sum": "embedding_sum"}

_SILENT_FRAMES = 25  # as long as Mimi remembers at least, so that its codes have settled


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint. `lm.config` and `mimi.config` say what it is.

    `mimi` hears the caller and `voice` is what the agent's codes mean. They are one, unless the config names another by
    `voice_name` and `voice_config_name`: then each was trained for its side alone.
    """

    name: str
    lm: LanguageModel
    mimi: Mimi
    voice: Mimi
    tokenizer_path: Path | None
    generation: Mapping[str, Any]  # the checkpoint's own sampling: temp, temp_text, top_k, top_k_text
    config: Mapping[str, Any]  # config.json as it stands
    mimi_config: Mapping[str, Any]
    files: Mapping[str, ModelFile] = field(default_factory=dict)  # by the keys that name them in config.json

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @torch.inference_mode()
    def silence(self) -> list[int]:
        """The codes [agent codebooks] whose sound is silence: what the voice's Mimi makes of two seconds of it."""
        frames = torch.zeros(1, _SILENT_FRAMES * self.voice.config.frame_samples, device=self.device)
        return [int(code) for code in self.voice.encode(frames, self.lm.config.agent_codebooks)[0, :, -1]]


def load_model(source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
               weights: EightBits | None = None, conditions: Mapping[str, str] | None = None) -> Model:
    """Load what source.py finds: a folder, a preset, a repository; the language model in `dtype`, or as stored, its
    linear maps in 8 bits if `weights` says so; `conditions`: the values of a model's look-up conditions.

    Mimi is float32 always. No tensor is in memory twice. Raises CheckpointError, one line that names what is
    missing, misshapen, unexpected, truncated or unknown.
    """
    device = torch.device(device)
    if weights and (why := why_not(weights, device)):
        raise CheckpointError(f"{source}: {why}")
    found = _find_files(Source(source))
    name, config, files = found.name, found.config, dict(found.files)
    with ExitStack() as opened:
        moshi_file = opened.enter_context(SafetensorsFile(files["moshi_name"].path))
        try:
            lm_config = LMConfig.from_dict(_with_content(config, moshi_file))
            lora_config = LoraConfig.from_dict(config)
        except ConfigError as error:
            raise CheckpointError(f"{name}: {error}") from None
        codecs = found.codecs(device)
        _check_codecs(name, lm_config, codecs)
        with torch.device("meta"):
            lm = LanguageModel(lm_config)
        adapters = None
        if lora_config is not None:
            files["lora_name"] = _found(found.source.find(lora_config.name, True))
            adapters = Adapters(opened.enter_context(SafetensorsFile(files["lora_name"].path)), lora_config, lm)
        fill(lm, moshi_file, device, dtype or _stored_dtype(moshi_file), adapters, weights)
    if lm_config.generated_codebooks > lm_config.agent_codebooks and (
            voices := found.source.find(VOICES_FILE, False)):
        files["voices"] = voices
    if config.get("model_type") == "hibiki":  # as the reference does: an end that comes too early counts as padding
        lm.text_emb.weight[EOS_TOKEN] = lm.text_emb.weight[PAD_TOKEN]
    try:
        lm.choose(conditions or {})
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
    generation = config.get("lm_gen_config") or {}
    return Model(name, lm.eval(), *codecs, generation, config, found.mimi_config, files)


class Codecs(NamedTuple):
    """A checkpoint without its language model; `voice` is `mimi` where there is one for both sides."""

    mimi: Mimi
    voice: Mimi
    tokenizer_path: Path | None


def load_codecs(source: str | Path, *, device: torch.device | str = "cpu") -> Codecs:
    """As load_model otherwise."""
    return _find_files(Source(source)).codecs(torch.device(device))


@torch.no_grad()
def fill(module: nn.Module, file: SafetensorsFile, device: torch.device, dtype: torch.dtype,
         adapters: Adapters | None = None, weights: EightBits | None = None) -> None:
    """Give every tensor of a module on the meta device its memory and its values, one by one; with `weights` the linear
    maps in 8 bits. Maps that the file holds in 8 bits stay so."""
    in_8_bits = maps(module) if weights else {}
    sources = {_canonical(name): name for name in file.tensors}
    used: set[str] = set()
    for name, meta in module.state_dict().items():
        stored_name, rows = _source(name, meta, sources, file, module)
        stored = file.tensors[stored_name]
        shape = stored.shape if rows is None else (rows[1] - rows[0], *stored.shape[1:])
        if tuple(meta.shape) != shape:
            raise CheckpointError(f"{file.path}: tensor {stored_name} has shape {list(stored.shape)}, "
                                  f"the config asks for {list(meta.shape)}")
        used.add(stored_name)
        map_name = name.removesuffix(".weight")
        changed = adapters is not None and adapters.changes(name)
        kind = weights if map_name in in_8_bits and not map_name.startswith(CONDITIONS) else None
        scale = None
        if stored.dtype == "I8" and (scales := f"{stored_name}_scb") in file.tensors:
            used.add(scales)
            target, scale = _read_8_bits(file, stored_name, rows, shape, device)
            if changed or kind == "fp8":
                kind = kind or "int8"
                target, scale = Quantised(target, scale).whole(), None
        else:
            kept = torch.float32 if name.startswith(CONDITIONS) else dtype
            target = torch.empty_strided(meta.shape, meta.stride(), dtype=kept, device=device)
            file.read_into(target, stored_name, rows)
        if changed and adapters is not None:
            adapters.merge_into(name, target)
        if kind and scale is None:
            target, scale = quantise(target, TYPES[kind])
        _assign(module, name, target)
        if scale is not None:
            module.get_submodule(map_name).scale = scale
    unexpected = sorted(set(file.tensors) - used)
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise CheckpointError(f"{file.path}: unexpected tensor {unexpected[0]}{more}: the config has no place for it")


def _read_8_bits(file: SafetensorsFile, name: str, rows: tuple[int, int] | None, shape: tuple[int, ...],
                 device: torch.device) -> tuple[Tensor, Tensor]:
    """A published int8 matrix, or some of its rows, and their scales."""
    values, greatest = torch.empty(shape, dtype=torch.int8, device=device), torch.empty(shape[0], device=device)
    scales = file.tensors[f"{name}_scb"]
    if scales.shape != file.tensors[name].shape[:1]:
        raise CheckpointError(f"{file.path}: tensor {name}_scb has shape {list(scales.shape)}, its matrix has "
                              f"{file.tensors[name].shape[0]} rows")
    file.read_into(values, name, rows)
    file.read_into(greatest, f"{name}_scb", rows)
    return values, greatest / 127


_PER_STEP = re.compile(r"(.*(?:self_attn|cross_attention)\.)(in|out)_projs\.(\d+)\.weight")


def _source(name: str, meta: Tensor, sources: Mapping[str, str], file: SafetensorsFile, module: nn.Module
            ) -> tuple[str, tuple[int, int] | None]:
    """Where a tensor stands in the file: by itself, or as rows of one that has all steps' projections in it."""
    if name in sources:
        return sources[name], None
    match = _PER_STEP.fullmatch(name)
    if match:
        prefix, way, step = match[1], match[2], int(match[3])
        for whole in (f"{prefix}{way}_proj_weight", f"{prefix}{way}_proj.weight"):
            if whole in sources:
                stored = file.tensors[sources[whole]]
                height = meta.shape[0]
                steps = len(module.get_submodule(f"{prefix}{way}_projs"))  # type: ignore[arg-type]
                if stored.shape != (steps * height, *meta.shape[1:]):
                    raise CheckpointError(f"{file.path}: tensor {sources[whole]} has shape {list(stored.shape)}, the "
                                          f"config asks for {[steps * height, *meta.shape[1:]]}")
                return sources[whole], (step * height, (step + 1) * height)
    raise CheckpointError(f"{file.path}: tensor {name} is missing")


def _canonical(name: str) -> str:
    head, _, leaf = name.rpartition(".")
    return f"{head}.{_OLD_NAMES[leaf]}" if head.endswith("_codebook") and leaf in _OLD_NAMES else name


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _stored_dtype(file: SafetensorsFile) -> torch.dtype:
    stored = file.tensors.get("text_emb.weight")
    return torch.float32 if stored is None or stored.dtype != "BF16" else torch.bfloat16


def _with_content(config: Mapping[str, Any], file: SafetensorsFile) -> Mapping[str, Any]:
    """A config without content is the first 7B's, or PersonaPlex's, which has depth steps for the caller as well."""
    if _has_content(config):
        return config
    steps = sum(re.fullmatch(r"linears\.\d+\.weight", name) is not None for name in file.tensors)
    return {**config, **FIRST_7B, "dep_q": steps or FIRST_7B["dep_q"]}


def _has_content(config: Mapping[str, Any]) -> bool:
    return any(key not in NOT_THE_LMS for key in config)


def _check_codecs(name: str, lm: LMConfig, codecs: Codecs) -> None:
    sides = ((codecs.mimi, lm.caller_codebooks), (codecs.voice, lm.agent_codebooks))
    for codec, needed in sides:
        if needed > codec.config.codebooks:
            raise CheckpointError(f"{name}: the language model needs {needed} codebooks, Mimi has "
                                  f"{codec.config.codebooks}")
        if lm.audio_card != codec.config.codebook_size:
            raise CheckpointError(f"{name}: the language model's codebooks have {lm.audio_card} entries, "
                                  f"Mimi's {codec.config.codebook_size}")
    if len({(codec.config.sample_rate, codec.config.frame_samples) for codec, _ in sides}) > 1:
        raise CheckpointError(f"{name}: the codecs of its two sides have different frames")


@dataclass(frozen=True)
class _Found:
    """A checkpoint's files and what its configs say, before its weights are read."""

    name: str
    source: Source
    config: Mapping[str, Any]
    mimi_config: Mapping[str, Any]
    voice_config: Mapping[str, Any]
    files: Mapping[str, ModelFile]

    def codecs(self, device: torch.device) -> Codecs:
        """Read their weights. Raises CheckpointError."""
        mimi = self._codec(self.mimi_config, "mimi_name", device)
        voice = self._codec(self.voice_config, "voice_name", device) if "voice_name" in self.files else mimi
        return Codecs(mimi, voice, self.tokenizer_path)

    def _codec(self, about: Mapping[str, Any], key: str, device: torch.device) -> Mimi:
        try:
            with torch.device("meta"):
                codec = Mimi(MimiConfig.from_dict(about))
        except ConfigError as error:
            raise CheckpointError(f"{self.name}: {error}") from None
        with SafetensorsFile(self.files[key].path) as file:
            fill(codec, file, device, torch.float32)
        return codec.eval()

    @property
    def tokenizer_path(self) -> Path | None:
        return self.files["tokenizer_name"].path if "tokenizer_name" in self.files else None


def fetch_files(source: str | Path, told: Told | None = None) -> list[ModelFile]:
    """Have all of a checkpoint's files here, its adapters' and voices' too; `told` hears how far they are."""
    place = Source(source, told)
    found = _find_files(place)
    try:
        lora = LoraConfig.from_dict(found.config)
    except ConfigError as error:
        raise CheckpointError(f"{found.name}: {error}") from None
    more = [place.find(lora.name, True) if lora else None, place.find(VOICES_FILE, False)]
    return [*found.files.values(), *(file for file in more if file is not None)]


def read_configs(place: Source) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A checkpoint's config.json, {} where it has none, and its Mimi's; no weights are looked at."""
    config_file = place.find("config.json", False)
    config = {} if config_file is None else _read_json(config_file.path)
    for key in ("moshi_name", "mimi_name", "mimi_config_name", "voice_name", "voice_config_name", "tokenizer_name"):
        if not isinstance(config.get(key) or "", str):
            raise CheckpointError(f"{place.name}: config.json: {key} must be a file's name, not {config[key]!r}")
    if not config.get("mimi_config_name"):
        return config, FIRST_MIMI
    return config, _read_json(_found(place.find(config["mimi_config_name"], True)).path)


def known_configs(place: Source) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """The same, whole, and where they are from; of a preset that can't be reached what one knows of it."""
    known = place.preset.config if place.preset else None
    try:
        config, mimi_config = read_configs(place)
    except CheckpointError:
        if known is None:
            raise
        return known, FIRST_MIMI, f"{place.repository}, by what is known of it: it can't be asked now"
    weights = config.get("moshi_name") or _MOSHI_FILE
    if known is not None and not _has_content(config):
        config = {**known, **config}
    elif place.folder is not None and not _has_content(config) and (place.folder / weights).is_file():
        with SafetensorsFile(place.folder / weights) as file:
            config = _with_content(config, file)
    return config, mimi_config, str(place.folder or place.repository)


def _find_files(place: Source) -> _Found:
    config, mimi_config = read_configs(place)

    def named(key: str, default: str) -> ModelFile:
        return _found(place.find(config.get(key) or default, True))

    tokenizer = place.find(config.get("tokenizer_name") or _TEXT_FILE, bool(config.get("tokenizer_name")))
    files = {"tokenizer_name": tokenizer} if tokenizer else {}
    files |= {key: named(key, "") for key in ("mimi_config_name", "voice_config_name", "voice_name") if config.get(key)}
    q8 = config.get("quantize") or place.name.endswith("-q8")
    files["moshi_name"] = named("moshi_name", _MOSHI_Q8_FILE if q8 else _MOSHI_FILE)
    files["mimi_name"] = named("mimi_name", _MIMI_FILE)
    voice = files.get("voice_config_name")
    return _Found(place.name, place, config, mimi_config, _read_json(voice.path) if voice else FIRST_MIMI, files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def _found(file: ModelFile | None) -> ModelFile:
    assert file is not None
    return file
