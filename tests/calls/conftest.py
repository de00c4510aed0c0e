from __future__ import annotations

import pytest

from calls.settings import Settings, load_settings


@pytest.fixture
def both(redis_url: str, database_url: str) -> Settings:
    return load_settings(redis_url=redis_url, database_url=database_url)
