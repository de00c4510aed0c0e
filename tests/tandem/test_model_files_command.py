"""`tandem model info` and `tandem model fetch`, as a user types them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import running_hub

GOLDEN = Path(__file__).parents[1] / "golden"


def tandem(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-m", "tandem", "model", *arguments], cwd=cwd, text=True, timeout=240,
                          capture_output=True,
                          env={**os.environ, "PYTHONPATH": path, "COLUMNS": "150", **environment})


def test_info_tells_what_a_preset_costs_where_nothing_can_be_fetched(tmp_path: Path) -> None:
    told = tandem("info", "personaplex", "--weights", "int8", "--kv", "int8", "--memory", "48", "--bandwidth", "864",
                  cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert told.returncode == 0, told.stderr
    assert "nvidia/personaplex-7b-v1, by what is known of it" in told.stdout
    assert "16 generated, 8 the agent's, 8 the caller's" in told.stdout
    assert "9.10 GB (int8)" in told.stdout
    assert [line.split()[2] for line in told.stdout.splitlines() if "this card" in line] == ["41"]


def test_info_of_something_unknown_is_one_line(tmp_path: Path) -> None:
    told = tandem("info", "hibiki", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert told.returncode == 1
    assert told.stderr.startswith("tandem: kyutai/hibiki-2b-pytorch-bf16: config.json is not in the cache")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("token", ["hf_right", "hf_wrong"])
def test_fetch_brings_a_gated_model_with_the_right_token_alone(tmp_path: Path, token: str) -> None:
    shutil.copytree(GOLDEN / "stt", tmp_path / "hub" / "somebody" / "stt")
    with running_hub(tmp_path / "hub") as hub:
        hub.gated, hub.token = ("somebody/stt",), "hf_right"
        told = tandem("fetch", "somebody/stt", cwd=tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=token,
                      HF_HOME=str(tmp_path / "home"))
    if token == "hf_right":
        assert told.returncode == 0, told.stderr
        assert "hf://somebody/stt/model.safetensors" in told.stdout
        assert next(tmp_path.glob("home/hub/*/snapshots/*/model.safetensors")).stat().st_size > 10_000
    else:
        assert told.returncode == 1
        assert "somebody/stt: is gated: sign in at" in told.stderr
        assert "hf_wrong" not in told.stderr
