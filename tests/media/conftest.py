from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from call_fakes import FakeWorker
from session_bench import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with FakeWorker() as worker:
        yield Bench(worker, tmp_path)
