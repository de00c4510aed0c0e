"""One thread inside torch, and the golden checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agent.moshi.checkpoint import Model, load_model

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    """Only to be read."""
    return {name: load_model(GOLDEN / name) for name in ("lm", "wide", "stt")}
