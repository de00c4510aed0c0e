"""What all tests of the agent share: one thread, whatever the machine has; models and engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines import SLOTS

from agent.engine import MoshiEngine
from agent.moshi.checkpoint import Model, load_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: load_model(GOLDEN / name) for name in ("lm", "wide", "stt")}


@pytest.fixture(scope="module")
def engines(models) -> dict[str, MoshiEngine]:
    return {name: MoshiEngine(model, SLOTS) for name, model in models.items()}


@pytest.fixture(scope="module")
def nano() -> tuple[Model, Model]:
    folder = Path(__file__).parents[2] / "models" / "nano"
    return load_model(folder), load_model(folder / "stt")
