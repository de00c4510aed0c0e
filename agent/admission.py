"""Who may take a slot: checks a bridge's lease token without Redis (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field

from calls.routing import BadToken, Lease, verify_lease


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
