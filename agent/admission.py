"""Who may take a slot: checks a bridge's lease token without Redis, and whether the device keeps up (pure)."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from calls.routing import BadToken, Lease, verify_lease

LOAD_WINDOW_US: Final = 4_000_000  # over which steps are measured
FULL_AT, OPEN_BELOW = 0.9, 0.8  # of the time spent in steps: no new calls; new ones again
TOO_MUCH_AT = 0.97  # frames come too late, or soon will
MOVE_EVERY_S = 5.0  # between two calls that are to go elsewhere: what the first one's going saves is seen by then


class Refused(Exception):
    """A connection that gets no slot; `code` goes into the error message to the bridge."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Admission:
    """One worker's door. A fence serves once per call: the next connection needs a higher one."""

    worker: str
    epoch: str
    secret: bytes = field(repr=False)
    draining: bool = False
    _fences: dict[str, tuple[int, float]] = field(default_factory=dict)  # call -> last fence, its token's expiry

    def check(self, call: str, token: str, now: float) -> Lease:
        """The lease behind `token`; raises Refused. `now` in unix seconds."""
        try:
            lease = verify_lease(token, self.secret, now)
        except BadToken as error:
            raise Refused("bad_token", str(error)) from None
        if lease.call != call:
            raise Refused("bad_token", "the lease is another call's")
        if (lease.worker, lease.epoch) != (self.worker, self.epoch):
            raise Refused("wrong_worker", "the lease is for another worker, or for an earlier life of this one")
        if self.draining:
            raise Refused("draining", "this worker takes no new calls")
        last_fence, _ = self._fences.get(call, (0, 0.0))
        if lease.fence <= last_fence:
            raise Refused("stale_fence", f"fence {lease.fence} was used; only one above {last_fence} is let in")
        self._forget_expired(now)
        self._fences[call] = (lease.fence, lease.expires)
        return lease

    def _forget_expired(self, now: float) -> None:
        """A token can't come back after its expiry, so its fence need not be remembered: this bounds the table."""
        for call in [call for call, (_, expires) in self._fences.items() if expires < now]:
            del self._fences[call]


class Load:
    """How much of the time a device steps. One thread measures, any may ask."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int]] = deque()  # when each ended, how long it took
        self._total_us = 0
        self._lock = threading.Lock()

    def stepped(self, ended_us: int, took_us: int) -> None:
        with self._lock:
            self._steps.append((ended_us, took_us))
            self._total_us += took_us
            self._forget(ended_us)

    def share(self, now_us: int) -> float:
        """Of the last LOAD_WINDOW_US; 0 where nothing was stepped. All a frame's steps together: at 1 a device that has
        80 ms for a frame takes 80 ms."""
        with self._lock:
            self._forget(now_us)
            return self._total_us / LOAD_WINDOW_US

    def _forget(self, now_us: int) -> None:
        while self._steps and self._steps[0][0] <= now_us - LOAD_WINDOW_US:
            self._total_us -= self._steps.popleft()[1]


class Verdict(Enum):
    OPEN = "open"
    FULL = "full"  # no new calls
    TOO_MUCH = "too much"  # and one of those that run shall go elsewhere


@dataclass
class Overload:
    """Of one device: full from FULL_AT on until it is below OPEN_BELOW, so that it doesn't go to and fro."""

    full: bool = False
    _moved_at: float = float("-inf")

    def judge(self, share: float, now: float) -> Verdict:
        """By the load's share, at `now` in seconds of any steady clock; TOO_MUCH once in MOVE_EVERY_S at most."""
        self.full = share >= (OPEN_BELOW if self.full else FULL_AT)
        if share >= TOO_MUCH_AT and now - self._moved_at >= MOVE_EVERY_S:
            self._moved_at = now
            return Verdict.TOO_MUCH
        return Verdict.FULL if self.full else Verdict.OPEN
