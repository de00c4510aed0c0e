"""What an INVITE may not be, and the SIP library lets pass (pure). RFC 4475 has an example of each but the last."""

from __future__ import annotations

import re

from calls.events import EndReason
from calls.screening import NotTaken
from calls.telephony import Trunk

BAD_REQUEST, NOT_ACCEPTABLE, NOT_ACCEPTABLE_HERE = 400, 406, 488
MOST_HEADERS = 128
MOST_SDP_LINES = 256
_ONCE = {"to": "To", "t": "To", "from": "From", "f": "From", "call-id": "Call-ID", "i": "Call-ID", "cseq": "CSeq",
         "max-forwards": "Max-Forwards", "content-length": "Content-Length", "l": "Content-Length"}
_SDP_RANGES = ("application/sdp", "application/*", "*/*")


def malformed(invite: str) -> NotTaken | None:
    """Why an INVITE isn't one that we take: 400, or 406 where the answer could be in no form that its sender takes."""
    head, _, body = invite.partition("\r\n\r\n")
    first, *lines = re.sub(r"\r\n[ \t]+", " ", head).split("\r\n")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if len(headers) > MOST_HEADERS:
        return _bad(f"{len(headers)} header fields; {MOST_HEADERS} are taken at most")
    if body.count("\n") > MOST_SDP_LINES:
        return _bad(f"a body of {body.count(chr(10))} lines; {MOST_SDP_LINES} are taken at most")
    if "?" in first.split(" ")[1].rpartition("@")[2]:
        return _bad("header fields in the request's URI")  # RFC 3261, 19.1.1
    names = [_ONCE[name] for name, _ in headers if name in _ONCE]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return _bad(f"more than one {', '.join(twice)}")
    length = next((value for name, value in headers if _ONCE.get(name) == "Content-Length"), "0")
    if not length.isdecimal() or int(length) > len(body.encode("utf-8", "surrogateescape")):
        return _bad(f"Content-Length {length:.20}, past the end")
    accepted = [value for name, value in headers if name == "accept"]
    ranges = {one.partition(";")[0].strip().lower() for value in accepted for one in value.split(",")}
    if accepted and not ranges.intersection(_SDP_RANGES):
        return NotTaken(NOT_ACCEPTABLE, EndReason.REJECTED, "it takes no session description in the answer (Accept)")
    return None


def encryption(invite: str, trunk: Trunk | None) -> NotTaken | None:
    """Why an INVITE won't do that brings SRTP, or none, against what is set for its trunk; None stands for callers
    of no trunk."""
    brings = re.search(r"^m=audio \d+ RTP/SAVP", invite, re.MULTILINE) is not None
    name, srtp = (f"trunk {trunk.name}", trunk.srtp) if trunk else ("a caller of no trunk", "off")
    if srtp == "required" and not brings:
        return NotTaken(NOT_ACCEPTABLE_HERE, EndReason.REJECTED, f"SRTP is required of {name}, the call brings none")
    if srtp == "off" and brings:
        return NotTaken(NOT_ACCEPTABLE_HERE, EndReason.REJECTED, f"SRTP is off for {name}, and the call brings it")
    return None


def _bad(why: str) -> NotTaken:
    return NotTaken(BAD_REQUEST, EndReason.REJECTED, f"malformed: {why}")
