"""Official checkpoints, from a folder or a Hugging Face repository, into modules.

The rules of names, defaults and layouts are those of the published repositories; see config.py for the configs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from agent.moshi.config import FIRST_7B, FIRST_MIMI, NOT_THE_LMS, ConfigError, LMConfig, LoraConfig, MimiConfig
from agent.moshi.lm import LanguageModel
from agent.moshi.lora import Adapters
from agent.moshi.mimi import Mimi
from agent.moshi.safetensors_file import CheckpointError, SafetensorsFile

__all__ = ["CheckpointError", "Codecs", "Model", "ModelFile", "load_codecs", "load_model"]

BUNDLED = {"nano": Path(__file__).resolve().parents[2] / "models" / "nano"}  # what the repository brings along
NAMES = {"moshiko": "kyutai/moshiko-pytorch-bf16", "moshika": "kyutai/moshika-pytorch-bf16"}

_MOSHI_FILE = "model.safetensors"
_MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
_TEXT_FILE = "tokenizer_spm_32k_3.model"

# Buffers of the quantiser that early checkpoints call otherwise.
_OLD_NAMES = {"inited": "_initialized", "cluster_size": "cluster_usage", "embed_avg": "embedding_sum",
              "embed_sum": "embedding_sum"}

_ELSEWHERE = "hf://"  # begins a file's name that is a repository's: hf://owner/name/file


@dataclass(frozen=True)
class ModelFile:
    """One of a checkpoint's files. `name` is how a config names it: hf://owner/name/file where a repository has it."""

    name: str
    path: Path


_SILENT_FRAMES = 25  # as long as Mimi remembers at least, so that its codes have settled

Find = Callable[[str, bool], ModelFile | None]  # a file's name, whether it must be there


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
               revision: str | None = None) -> Model:
    """Load a folder, `moshiko`, `moshika` or a repository `owner/name`; the language model in `dtype`, or as stored.

    Mimi is float32 always. No tensor is in memory twice. Raises CheckpointError, one line that names what is
    missing, misshapen, unexpected, truncated or unknown.
    """
    found = _find_files(source, revision)
    name, config, files = found.name, found.config, dict(found.files)
    device = torch.device(device)
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
            files["lora_name"] = _found(found.find(lora_config.name, True))
            adapters = Adapters(opened.enter_context(SafetensorsFile(files["lora_name"].path)), lora_config, lm)
        fill(lm, moshi_file, device, dtype or _stored_dtype(moshi_file))
        if adapters is not None:
            adapters.merge_into(lm)
    if lm_config.generated_codebooks > lm_config.agent_codebooks and (voices := found.find("voices.tgz", False)):
        files["voices"] = voices
    generation = config.get("lm_gen_config") or {}
    return Model(name, lm.eval(), *codecs, generation, config, found.mimi_config, files)


class Codecs(NamedTuple):
    """A checkpoint without its language model; `voice` is `mimi` where there is one for both sides."""

    mimi: Mimi
    voice: Mimi
    tokenizer_path: Path | None


def load_codecs(source: str | Path, *, device: torch.device | str = "cpu", revision: str | None = None) -> Codecs:
    """As load_model otherwise."""
    return _find_files(source, revision).codecs(torch.device(device))


@torch.no_grad()
def fill(module: nn.Module, file: SafetensorsFile, device: torch.device, dtype: torch.dtype) -> None:
    """Give every tensor of a module on the meta device its memory and its values, one by one."""
    sources = {_canonical(name): name for name in file.tensors}
    used: set[str] = set()
    for name, meta in module.state_dict().items():
        stored_name, rows = _source(name, meta, sources, file, module)
        stored = file.tensors[stored_name]
        shape = stored.shape if rows is None else (rows[1] - rows[0], *stored.shape[1:])
        if tuple(meta.shape) != shape:
            raise CheckpointError(f"{file.path}: tensor {stored_name} has shape {list(stored.shape)}, "
                                  f"the config asks for {list(meta.shape)}")
        target = torch.empty_strided(meta.shape, meta.stride(), dtype=dtype, device=device)
        file.read_into(target, stored_name, rows)
        _assign(module, name, target)
        used.add(stored_name)
    unexpected = sorted(set(file.tensors) - used)
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise CheckpointError(f"{file.path}: unexpected tensor {unexpected[0]}{more}: the config has no place for it")


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
    if any(key not in NOT_THE_LMS for key in config):
        return config
    steps = sum(re.fullmatch(r"linears\.\d+\.weight", name) is not None for name in file.tensors)
    return {**config, **FIRST_7B, "dep_q": steps or FIRST_7B["dep_q"]}


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
    find: Find
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


def _find_files(source: str | Path, revision: str | None) -> _Found:
    name, find = _locate(source, revision)
    config_file = find("config.json", False)
    config = {} if config_file is None else _read_json(config_file.path)
    for key in ("moshi_name", "mimi_name", "mimi_config_name", "voice_name", "voice_config_name", "tokenizer_name"):
        if not isinstance(config.get(key, ""), str):
            raise CheckpointError(f"{name}: config.json: {key} must be a file's name, not {config[key]!r}")
    tokenizer = find(config.get("tokenizer_name", _TEXT_FILE), "tokenizer_name" in config)
    files = {"tokenizer_name": tokenizer} if tokenizer else {}
    codec_configs: dict[str, Mapping[str, Any]] = {}
    for key in ("mimi_config_name", "voice_config_name"):
        codec_configs[key] = FIRST_MIMI
        if config.get(key):
            files[key] = _found(find(config[key], True))
            codec_configs[key] = _read_json(files[key].path)
    files["moshi_name"] = _found(find(config.get("moshi_name", _MOSHI_FILE), True))
    files["mimi_name"] = _found(find(config.get("mimi_name", _MIMI_FILE), True))
    if config.get("voice_name"):
        files["voice_name"] = _found(find(config["voice_name"], True))
    return _Found(name, find, config, codec_configs["mimi_config_name"], codec_configs["voice_config_name"], files)


def _locate(source: str | Path, revision: str | None) -> tuple[str, Find]:
    """The model's name, and how to find its files: in a folder, or by download into the Hugging Face cache."""
    repository = NAMES.get(str(source), str(source))
    folder = BUNDLED.get(str(source), Path(source))
    if folder.is_dir():
        def find(file: str, needed: bool) -> ModelFile | None:
            if file.startswith(_ELSEWHERE):
                return _download(file, needed)
            path = folder / file
            if needed and not path.is_file():
                raise CheckpointError(f"{folder}: {file} is missing")
            return ModelFile(file, path) if path.is_file() else None

        return folder.resolve().name, find
    if isinstance(source, Path) or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        names = ", ".join((*BUNDLED, *NAMES))
        raise CheckpointError(f"{source}: no such folder; give a folder, {names} or a repository owner/name")

    def fetch(file: str, needed: bool) -> ModelFile | None:
        if file.startswith(_ELSEWHERE):
            return _download(file, needed)
        return _download(f"{_ELSEWHERE}{repository}/{file}", needed, revision)

    return repository.split("/")[-1], fetch


def _download(name: str, needed: bool, revision: str | None = None) -> ModelFile | None:
    """The file hf://owner/name/file, from the Hugging Face cache or into it."""
    owner, repository, file = [*name.removeprefix(_ELSEWHERE).split("/", 2), "", ""][:3]
    repository = f"{owner}/{repository}"
    if not file:
        raise CheckpointError(f"{name}: is no file of a repository, {_ELSEWHERE}owner/name/file")
    try:
        return ModelFile(name, Path(hf_hub_download(repository, file, revision=revision)))
    except LocalEntryNotFoundError:
        raise CheckpointError(f"{repository}: can't be reached, and {file} is not in the cache") from None
    except EntryNotFoundError:
        if needed:
            raise CheckpointError(f"{repository}: {file} is missing") from None
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{repository}: {file}: {' '.join(str(error).split())[:200]}") from None


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
