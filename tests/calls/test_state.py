from __future__ import annotations

from itertools import product

import pytest

from calls.state import TRANSITIONS, IllegalTransition, Signal, State, advance

LEGAL = {
    (State.RINGING, Signal.WORKER_READY): State.READY,
    (State.RINGING, Signal.REFUSED): State.ENDED,
    (State.RINGING, Signal.HANGUP): State.ENDED,
    (State.RINGING, Signal.END): State.ENDED,
    (State.READY, Signal.ANSWERED): State.TALKING,
    (State.READY, Signal.HANGUP): State.ENDED,
    (State.READY, Signal.END): State.ENDED,
    (State.READY, Signal.WORKER_LOST): State.ENDED,
    (State.TALKING, Signal.HANGUP): State.ENDED,
    (State.TALKING, Signal.END): State.DRAINING,
    (State.TALKING, Signal.WORKER_LOST): State.DRAINING,
    (State.DRAINING, Signal.DRAINED): State.ENDED,
    (State.DRAINING, Signal.HANGUP): State.ENDED,
    (State.DRAINING, Signal.WORKER_LOST): State.DRAINING,
}


@pytest.mark.parametrize(("state", "signal"), list(product(State, Signal)))
def test_every_pair_of_state_and_signal_leads_where_it_should_or_is_refused(state: State, signal: Signal) -> None:
    if (state, signal) in LEGAL:
        assert advance(state, signal) is LEGAL[state, signal]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.value} can't take '{signal.value}'"):
            advance(state, signal)


def test_from_every_state_a_call_can_end() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in State:
        reached, new = {state}, {state}
        while new:
            new = {after for each in new for after in TRANSITIONS[each].values()} - reached
            reached |= new
        assert State.ENDED in reached
