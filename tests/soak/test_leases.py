"""Leases under all that may happen to them, for long: `make soak`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from lease_machine import machine_on


@pytest.mark.soak
def test_in_a_hundred_lives_of_a_pool_no_slot_is_taken_twice_and_none_is_lost(redis_url: str) -> None:
    run_state_machine_as_test(machine_on(redis_url), settings=settings(
        max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)))
