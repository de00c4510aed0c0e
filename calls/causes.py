"""Why a call ended, in the telephone network's terms and in words (pure).

The network's terms are causes of ITU-T Q.850; how SIP's statuses become causes: RFC 3398, 8.2.6.1; how both sides tell
each other: the Reason header, RFC 3326.
"""

from __future__ import annotations

import re
from typing import Literal

from calls.events import EndReason

Outcome = Literal["ringing", "answered", "busy", "no_answer", "rejected", "failed"]

FAILED = 300  # from this SIP status on
NORMAL, BUSY, NO_ANSWER, REJECTED, TEMPORARY, CONGESTION, ON_TIMER, INTERWORKING = 16, 17, 19, 21, 41, 42, 102, 127

_BY_STATUS = {
    400: 41, 401: 21, 402: 21, 403: 21, 404: 1, 405: 63, 406: 79, 407: 21, 408: ON_TIMER, 410: 22, 415: 79, 480: 18,
    481: 41, 482: 25, 483: 25, 484: 28, 485: 1, 486: BUSY, 500: 41, 501: 79, 502: 38, 503: 41, 504: ON_TIMER, 600: BUSY,
    603: REJECTED, 604: 1,
}
_BY_REASON = {
    EndReason.CALLER_HUNG_UP: NORMAL, EndReason.CANCELLED: NORMAL, EndReason.AGENT_HUNG_UP: NORMAL,
    EndReason.OPERATOR_HUNG_UP: NORMAL, EndReason.TRANSFERRED: NORMAL, EndReason.BUSY: BUSY,
    EndReason.NO_ANSWER: NO_ANSWER, EndReason.REJECTED: REJECTED, EndReason.NO_WORKER: TEMPORARY,
    EndReason.OVERLOADED: CONGESTION, EndReason.WORKER_LOST: TEMPORARY, EndReason.MEDIA_LOST: TEMPORARY,
    EndReason.SHUTDOWN: TEMPORARY, EndReason.BRIDGE_LOST: TEMPORARY,
}
_WORDS = {
    EndReason.CALLER_HUNG_UP: "The other side hung up",
    EndReason.CANCELLED: "The caller gave up while it rang",
    EndReason.AGENT_HUNG_UP: "The agent hung up",
    EndReason.OPERATOR_HUNG_UP: "An operator or a rule hung up",
    EndReason.BUSY: "Busy",
    EndReason.NO_WORKER: "No worker could take the call",
    EndReason.OVERLOADED: "This bridge took no calls",
    EndReason.WORKER_LOST: "The call lost its worker and found no other",
    EndReason.BRIDGE_LOST: "The process that carried the call died",
    EndReason.MEDIA_LOST: "No sound came from the other side any more",
    EndReason.SHUTDOWN: "This process ended",
    EndReason.TRANSFERRED: "The caller was handed on",
    EndReason.NO_ANSWER: "Nobody answered",
    EndReason.REJECTED: "The call was rejected",
    EndReason.FAILED: "The call failed",
}
_CAUSE = re.compile(r"^reason[ \t]*:[^\r\n]*?q\.850[^\r\n,]*?;[ \t]*cause[ \t]*=[ \t]*(\d{1,3})\b",
                    re.IGNORECASE | re.MULTILINE)


def q850(reason: EndReason, sip_status: int | None) -> int:
    """The cause of an end: of the status where the call failed by one, else of the reason."""
    if reason in _BY_REASON and reason is not EndReason.REJECTED:
        return _BY_REASON[reason]
    return _BY_STATUS.get(sip_status or 0, _BY_REASON.get(reason, INTERWORKING))


def cause_in(message: str) -> int | None:
    """The Q.850 cause that a SIP message's Reason header tells; None where it tells none."""
    found = _CAUSE.search(message)
    cause = int(found.group(1)) if found else 0
    return cause if 0 < cause <= INTERWORKING else None


def in_words(reason: str | None, detail: str | None, sip_status: int | None, cause: int | None) -> str:
    """A sentence for people; empty while the call hasn't ended."""
    if not reason:
        return ""
    try:
        said = _WORDS[EndReason(reason)]
    except ValueError:
        said = reason
    terms = [f"SIP {sip_status}"] if sip_status and sip_status >= FAILED else []  # else it had been answered
    terms += [f"Q.850 {cause}"] if cause else []
    told = f" ({', '.join(terms)})" if terms else ""
    return f"{said}{f': {detail}' if detail else ''}{told}."


def outcome(answered: bool, end_reason: str | None) -> Outcome:
    """Of a call that we made, by its row."""
    if answered:
        return "answered"
    if end_reason is None:
        return "ringing"
    known: dict[str, Outcome] = {EndReason.BUSY: "busy", EndReason.NO_ANSWER: "no_answer",
                                 EndReason.REJECTED: "rejected"}
    return known.get(end_reason, "failed")
