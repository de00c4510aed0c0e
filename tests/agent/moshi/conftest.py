"""One thread inside torch, and the golden checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.moshi.checkpoint import Model, load_model

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    """Only to be read."""
    return {name: load_model(GOLDEN / name) for name in ("lm", "wide", "stt")}
