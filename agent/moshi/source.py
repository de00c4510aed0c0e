"""Where a checkpoint's files come from: a folder, a preset's name, or a Hugging Face repository's cache or download.

A name may pin a revision: `owner/name@revision`, `moshiko@revision`. Hugging Face's own variables hold: `HF_HOME`
(where its cache is), `HF_TOKEN` (for gated repositories), `HF_HUB_OFFLINE=1` (the cache alone) and `HF_ENDPOINT`.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils._headers import build_hf_headers

from agent.moshi.config import FIRST_7B
from agent.moshi.safetensors_file import CheckpointError

BUNDLED = {"nano": Path(__file__).resolve().parents[2] / "models" / "nano"}  # what the repository brings along
ELSEWHERE = "hf://"  # begins a file's name that is a repository's: hf://owner/name/file

_STT: Mapping[str, Any] = {
    "dim": 2048, "max_period": 100000, "n_q": 32, "dep_q": 0, "card": 2048, "delays": [0] * 33, "hidden_scale": 4.125,
    "causal": True, "layer_scale": None, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope"}


@dataclass(frozen=True)
class Preset:
    """A published checkpoint. `config`: its language model, as far as one knows it without asking."""

    repository: str
    config: Mapping[str, Any] | None = None


PRESETS = {
    "moshiko": Preset("kyutai/moshiko-pytorch-bf16", FIRST_7B),
    "moshika": Preset("kyutai/moshika-pytorch-bf16", FIRST_7B),
    "moshiko-q8": Preset("kyutai/moshiko-pytorch-q8", {**FIRST_7B, "quantize": True}),
    "moshika-q8": Preset("kyutai/moshika-pytorch-q8", {**FIRST_7B, "quantize": True}),
    "personaplex": Preset("nvidia/personaplex-7b-v1", {**FIRST_7B, "dep_q": 16}),
    "stt-1b": Preset("kyutai/stt-1b-en_fr", {
        **_STT, "num_layers": 16, "num_heads": 16, "context": 750, "text_card": 8000}),
    "stt-2.6b": Preset("kyutai/stt-2.6b-en", {
        **_STT, "num_layers": 48, "num_heads": 32, "context": 375, "text_card": 4000}),
    "hibiki": Preset("kyutai/hibiki-2b-pytorch-bf16"),
    "hibiki-1b": Preset("kyutai/hibiki-1b-pytorch-bf16"),
}

Told = Callable[[str, int, int | None], None]  # a file's name, how many of its bytes are here, of how many


@dataclass(frozen=True)
class ModelFile:
    """One of a checkpoint's files. `name` is how a config names it: hf://owner/name/file where a repository has it."""

    name: str
    path: Path


class Source:
    """A checkpoint's place. Raises CheckpointError, one line, for a source that is nothing."""

    def __init__(self, source: str | Path, told: Told | None = None) -> None:
        self._told = told
        self.folder: Path | None = BUNDLED.get(str(source), Path(source))
        self.repository, self.revision, self.preset = "", None, None
        if self.folder.is_dir():
            self.name = self.folder.resolve().name
            return
        self.folder = None
        name, _, revision = str(source).partition("@")
        self.preset = PRESETS.get(name)
        self.repository = self.preset.repository if self.preset else name
        self.revision = revision or None
        if isinstance(source, Path) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", self.repository):
            names = ", ".join((*BUNDLED, *PRESETS))
            raise CheckpointError(f"{source}: no such folder; give a folder, {names}, or a repository owner/name or "
                                  "owner/name@revision")
        self.name = self.repository.split("/")[-1]

    def find(self, file: str, needed: bool) -> ModelFile | None:
        """A file by its name in a config; None if it isn't there and isn't needed. Raises CheckpointError."""
        if file.startswith(ELSEWHERE):
            return self._elsewhere(file, needed)
        if self.folder is None:
            return self._download(self.repository, file, needed, self.revision)
        path = self.folder / file
        if needed and not path.is_file():
            raise CheckpointError(f"{self.folder}: {file} is missing")
        return ModelFile(file, path) if path.is_file() else None

    def _elsewhere(self, name: str, needed: bool) -> ModelFile | None:
        owner, repository, file = [*name.removeprefix(ELSEWHERE).split("/", 2), "", ""][:3]
        if not file:
            raise CheckpointError(f"{name}: is no file of a repository, {ELSEWHERE}owner/name/file")
        return self._download(f"{owner}/{repository}", file, needed, None)

    def _download(self, repository: str, file: str, needed: bool, revision: str | None) -> ModelFile | None:
        """The file from the Hugging Face cache, or into it."""
        try:
            path = _into_cache(repository, file, revision, self._told)
        except EntryNotFoundError as error:
            # without the hub one may still know, from the last time, that it has no such file
            absent = not isinstance(error, LocalEntryNotFoundError) or _known_absent(repository, file, revision)
            if absent and not needed:
                return None
            raise CheckpointError(f"{repository}: {_why_absent(file, error)}") from None
        except GatedRepoError:
            raise CheckpointError(
                f"{repository}: is gated: sign in at {constants.ENDPOINT}/{repository} and accept its licence there, "
                "then put a token that may read it into HF_TOKEN (or run `hf auth login`)") from None
        except RepositoryNotFoundError:
            raise CheckpointError(f"{repository}: there is no such repository, or it is private and neither HF_TOKEN "
                                  "nor `hf auth login` opens it") from None
        except RevisionNotFoundError:
            raise CheckpointError(f"{repository}: has no revision {revision}") from None
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(f"{repository}: {file}: {' '.join(str(error).split())[:200]}") from None
        return ModelFile(f"{ELSEWHERE}{repository}/{file}", path)


def _known_absent(repository: str, file: str, revision: str | None) -> bool:
    known = try_to_load_from_cache(repository, file, revision=revision)
    return known is not None and not isinstance(known, str)


def _why_absent(file: str, error: EntryNotFoundError) -> str:
    if not isinstance(error, LocalEntryNotFoundError):
        return f"{file} is missing"
    if constants.HF_HUB_OFFLINE:
        return f"{file} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it (`tandem model fetch` does, online)"
    return f"can't be reached, and {file} is not in the cache"


def _into_cache(repository: str, file: str, revision: str | None, told: Told | None) -> Path:
    """The file's path in the cache. A download that was cut short goes on where it stood, in another process too, which
    the hub's own client doesn't do; what comes is laid where that client looks for it."""
    info = hf_hub_download(repository, file, revision=revision, dry_run=True)
    if not info.is_cached:
        url = hf_hub_url(repository, file, revision=info.commit_hash)
        metadata = get_hf_file_metadata(url)
        blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        _fetch(url, file, blobs / str(metadata.etag), metadata.size, told)
    elif Path(info.local_path).exists():
        return Path(info.local_path)
    return Path(hf_hub_download(repository, file, revision=revision))


def _fetch(url: str, file: str, blob: Path, size: int | None, told: Told | None) -> None:
    partial = blob.with_name(f"{blob.name}.partial")
    with partial.open("ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # of two who fetch the same, one waits and then finds it there
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        have = opened.seek(0, 2)
        if size is not None and have > size:
            have = opened.truncate(0)
        http_get(url, opened, resume_size=have, headers=build_hf_headers(), expected_size=size,
                 displayed_filename=file, tqdm_class=_bar(file, told))
        opened.flush()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and _sha256(partial) != blob.name:
            partial.unlink()
            raise OSError("what came isn't what the hub promised (its SHA-256 differs); try again")
        partial.replace(blob)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _bar(file: str, told: Told | None) -> type:
    """In place of the client's progress bar: tells how far a file is."""

    class Bar:
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            self.n, self.total = initial, total
            self.update(0)

        def update(self, more: float = 1) -> None:
            self.n += int(more)
            if told is not None:
                told(file, self.n, self.total)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

    return Bar
