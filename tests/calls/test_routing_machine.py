"""The state machine of leases, shortly; tests/soak/test_leases.py runs it for long."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from lease_machine import machine_on


def test_whatever_happens_to_workers_and_takers_no_slot_is_taken_twice_and_none_is_lost(redis_url: str) -> None:
    run_state_machine_as_test(machine_on(redis_url), settings=settings(
        max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)))
