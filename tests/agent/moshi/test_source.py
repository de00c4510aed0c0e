"""Checkpoints from a hub: fetched, cached, pinned, resumed; what is wrong is one line that says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import OLD_COMMIT, Hub, running_hub
from huggingface_hub import constants

from agent.moshi.checkpoint import CheckpointError, fetch_files, load_model
from agent.moshi.source import PRESETS, Preset, Source

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = ("config.json", "mimi_config.json", "model.safetensors", "mimi.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With somebody/wide in it, and an empty cache."""
    repository = tmp_path / "hub" / "somebody" / "wide"
    repository.mkdir(parents=True)
    for file in FILES:
        shutil.copy(GOLDEN / "wide" / file, repository / file)
    with running_hub(tmp_path / "hub") as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # after so many bytes what came is kept
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def bodies(hub: Hub) -> list[str]:
    """Files that were sent, not only asked about."""
    return [path.rsplit("/", 1)[-1] for method, path, _ in hub.asked if method == "GET"]


def test_a_repository_is_fetched_once_and_then_loads_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = fetch_files("somebody/wide")
    assert sorted(bodies(hub)) == sorted(FILES)
    assert [file.name for file in fetched] == [f"hf://somebody/wide/{name}" for name in (
        "mimi_config.json", "model.safetensors", "mimi.safetensors")]
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load_model("somebody/wide")
    assert model.name == "wide"
    assert model.lm.config.generated_codebooks == 16
    assert not hub.asked


def test_without_a_config_the_cache_knows_that_there_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.root / "somebody" / "wide" / "config.json").unlink()
    assert Source("somebody/wide").find("config.json", False) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Source("somebody/wide").find("config.json", False) is None


def test_what_isnt_in_the_cache_is_named_when_the_hub_may_not_be_asked(
        hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"somebody/wide: config\.json is not in the cache, and HF_HUB_OFFLINE"):
        load_model("somebody/wide")
    assert not hub.asked


def test_a_download_that_was_cut_short_goes_on_where_it_stood(hub: Hub, tmp_path: Path) -> None:
    whole = (hub.root / "somebody" / "wide" / "model.safetensors").read_bytes()
    hub.cut_after = 1000 * (len(whole) // 2000)
    told: list[tuple[str, int, int | None]] = []
    with pytest.raises(CheckpointError, match=r"somebody/wide: model\.safetensors: "):
        fetch_files("somebody/wide", lambda *step: told.append(step))
    hub.mend()
    hub.asked.clear()
    fetch_files("somebody/wide", lambda *step: told.append(step))
    asked = [ask for ask in hub.asked if ask[0] == "GET" and ask[1].endswith("model.safetensors")]
    assert [range_ for _, _, range_ in asked] == [f"bytes={1000 * (len(whole) // 2000)}-"]
    path = next(tmp_path.glob("cache/*/snapshots/*/model.safetensors"))
    assert path.read_bytes() == whole
    assert ("model.safetensors", len(whole), len(whole)) in told
    assert not list(tmp_path.glob("cache/**/*.partial"))


def test_what_isnt_what_the_hub_promised_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    whole = (hub.root / "somebody" / "wide" / "model.safetensors").read_bytes()
    hub.cut_after = 5000
    with pytest.raises(CheckpointError):
        fetch_files("somebody/wide")
    partial = next(tmp_path.glob("cache/**/*.partial"))
    partial.write_bytes(b"\0" * len(partial.read_bytes()))
    hub.mend()
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        fetch_files("somebody/wide")
    fetch_files("somebody/wide")
    assert next(tmp_path.glob("cache/*/snapshots/*/model.safetensors")).read_bytes() == whole


def test_a_revision_is_pinned_by_its_name(hub: Hub) -> None:
    old = hub.root / "old" / "wide"
    shutil.copytree(hub.root / "somebody" / "wide", old)
    (old / "config.json").write_text((old / "config.json").read_text().replace('"context": 16', '"context": 15', 1))
    assert [load_model(f"somebody/wide{revision}").lm.config.temporal.context
            for revision in ("", "@v1", f"@{OLD_COMMIT}")] == [16, 15, 15]
    with pytest.raises(CheckpointError, match="somebody/wide: has no revision v2"):
        load_model("somebody/wide@v2")


def test_a_gated_repository_says_what_to_accept_and_where_the_token_goes(
        hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.token = ("somebody/wide",), "hf_secret"
    monkeypatch.setitem(PRESETS, "personaplex", Preset("somebody/wide"))
    with pytest.raises(CheckpointError) as refused:
        load_model("personaplex")
    line = str(refused.value)
    assert f"is gated: sign in at {hub.url}/somebody/wide and accept its licence" in line
    assert "HF_TOKEN" in line
    assert "\n" not in line
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert load_model("personaplex").name == "wide"


def test_a_repository_that_isnt_there_is_named(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="somebody/else: there is no such repository, or it is private"):
        load_model("somebody/else")


def test_a_file_of_another_repository_is_fetched_from_there(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(GOLDEN / "wide", folder)
    config = (folder / "config.json").read_text().replace(
        '"model.safetensors"', '"hf://somebody/wide/model.safetensors"')
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").unlink()
    model = load_model(folder)
    assert bodies(hub) == ["model.safetensors"]
    assert model.files["moshi_name"].name == "hf://somebody/wide/model.safetensors"
    assert model.files["mimi_name"].name == "mimi.safetensors"


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_names_a_repository(name: str) -> None:
    place = Source(f"{name}@main")
    assert (place.repository, place.revision) == (PRESETS[name].repository, "main")
