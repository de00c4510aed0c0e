"""One edge for all the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from edge_bench import Edge, edge
from sip_bench import Surroundings


@pytest.fixture(scope="module")
def before(around: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """What stands before the SIP processes."""
    around.slots = 64
    with edge(around.redis_url, tmp_path_factory.mktemp("edge"), edge_requests_per_s=50, edge_calls=2) as started:
        started.publish()
        yield started
