"""Whether a call that comes in is taken, by the telephony document alone (pure)."""

from __future__ import annotations

from datetime import datetime

from calls.events import EndReason
from calls.routing import Refusal
from calls.telephony import Telephony


class NotTaken(Refusal):
    """For a reason that lies in whose call it is, or when it comes. The answer tells strangers only what they need."""

    def __init__(self, sip_status: int, reason: EndReason, why: str) -> None:
        super().__init__(why)
        self.sip_status, self.reason = sip_status, reason  # type: ignore[misc]  # of each by itself


FORBIDDEN, UNAVAILABLE, BUSY = 403, 480, 486


def screened(telephony: Telephony, *, caller: str, host: str, source: str, at: datetime) -> NotTaken | None:
    """Why a call of the user `caller` at `host` isn't taken, which came from the address `source` at this time."""
    inbound, trunk = telephony.inbound, telephony.trunk_from(source)
    if inbound.trunks_only and trunk is None:
        return NotTaken(FORBIDDEN, EndReason.REJECTED, f"{source} is no trunk's")
    if not inbound.takes(caller, host):
        return NotTaken(FORBIDDEN, EndReason.REJECTED, f"calls of {caller}@{host} aren't taken")
    if not inbound.is_open(at):
        return NotTaken(UNAVAILABLE, EndReason.REJECTED, "outside the opening hours")
    return None


def busy(what: str) -> NotTaken:
    return NotTaken(BUSY, EndReason.BUSY, f"as many calls as are allowed at a time: {what}")
