"""How much of something is allowed in a time (pure)."""

from __future__ import annotations


class Bucket:
    """`burst` at once, `rate` a second after that; moments are seconds of any monotonic clock."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left = burst
        self._at: float | None = None

    def take(self, amount: float, now: float) -> bool:
        """Whether so much is still allowed; what isn't is not taken."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if amount > self._left:
            return False
        self._left -= amount
        return True
