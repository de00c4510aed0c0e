"""One Tandem for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Served, serving


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serving(rtp_port=30000, slots=4, echo_slots=2, drain_s=5) as running:
        yield running
