"""A call's states as its bridge sees them, and what leads from one to the next (pure)."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    RINGING = "ringing"  # 180 is sent, a worker is being leased
    READY = "ready"  # a slot is ours, the call isn't answered yet
    TALKING = "talking"  # answered: the call's clock runs
    DRAINING = "draining"  # we end it: what the agent has said is still played
    ENDED = "ended"


class Signal(Enum):
    WORKER_READY = "worker ready"
    REFUSED = "refused"  # no slot, no worker, or not allowed
    ANSWERED = "answered"
    HANGUP = "hangup"  # the other side ended or cancelled
    END = "end"  # this side wants to end
    WORKER_LOST = "worker lost"
    DRAINED = "drained"


TRANSITIONS: dict[State, dict[Signal, State]] = {
    State.RINGING: {Signal.WORKER_READY: State.READY, Signal.REFUSED: State.ENDED, Signal.HANGUP: State.ENDED,
                    Signal.END: State.ENDED},
    State.READY: {Signal.ANSWERED: State.TALKING, Signal.HANGUP: State.ENDED, Signal.END: State.ENDED,
                  Signal.WORKER_LOST: State.ENDED},
    State.TALKING: {Signal.HANGUP: State.ENDED, Signal.END: State.DRAINING, Signal.WORKER_LOST: State.DRAINING},
    State.DRAINING: {Signal.DRAINED: State.ENDED, Signal.HANGUP: State.ENDED, Signal.WORKER_LOST: State.DRAINING},
    State.ENDED: {},
}


class IllegalTransition(RuntimeError):
    """The signal has no meaning in this state; nothing has changed."""


def advance(state: State, signal: Signal) -> State:
    """The state after `signal`; raises IllegalTransition where the table has none."""
    try:
        return TRANSITIONS[state][signal]
    except KeyError:
        raise IllegalTransition(f"a call that is {state.value} can't take '{signal.value}'") from None
