"""What RFC 4475 says of each of its messages, and how we answer it: a SIP process by itself, and the edge before one
(to a trunk, where it is an INVITE). None: no answer, and nothing comes of it.

Where we deviate from the RFC, `deviates` says so; docs/telephony.md has these, too.
"""

from __future__ import annotations

from dataclasses import dataclass

CHALLENGED = "registration needs digest: 401; a SIP process is no registrar: 405"
NOT_PARSED = "refused without an answer: nobody can parse it"


@dataclass(frozen=True)
class Expected:
    """`valid`: whether the RFC has it be taken as well-formed."""

    section: str
    valid: bool
    process: int | None
    edge: int | None
    why: str
    deviates: str = ""


TABLE = {
    "wsinv": Expected("3.1.1.1", True, 481, None, "well-formed; its To has a tag, of no dialog of ours",
                      "edge: Kamailio's parser takes no CSeq that is folded"),
    "intmeth": Expected("3.1.1.2", True, 405, None, "an unknown method; 501 in the RFC, 405 in RFC 3261, 8.2.1",
                        "edge: Kamailio's parser takes no header name with such characters"),
    "esc01": Expected("3.1.1.3", True, 200, 200, "well-formed: a call"),
    "escnull": Expected("3.1.1.4", True, 405, 401, CHALLENGED),
    "esc02": Expected("3.1.1.5", True, 405, None, "an unknown method, and not REGISTER",
                      "edge: Kamailio's parser takes no header name with %"),
    "lwsdisp": Expected("3.1.1.6", True, 200, 200, "to be taken, whatever the grammar says"),
    "longreq": Expected("3.1.1.7", True, 200, 200, "well-formed: a call; the edge shortens it for the SIP process"),
    "dblreq": Expected("3.1.1.8", True, 405, 401, f"one REGISTER, and noise after it; {CHALLENGED}"),
    "semiuri": Expected("3.1.1.9", True, 200, 200, "well-formed"),
    "transports": Expected("3.1.1.10", True, 200, 200, "well-formed"),
    "mpart01": Expected("3.1.1.11", True, 200, 405, "well-formed; a SIP process takes it and shows it to nobody"),
    "unreason": Expected("3.1.1.12", True, None, None, "a response to no request of ours"),
    "noreason": Expected("3.1.1.13", True, None, None, "a response to no request of ours"),
    "badinv01": Expected("3.1.2.1", False, None, None, NOT_PARSED),
    "clerr": Expected("3.1.2.2", False, 400, 400, "less body than it says"),
    "ncl": Expected("3.1.2.3", False, None, None, NOT_PARSED),
    "scalar02": Expected("3.1.2.4", False, None, 400, "CSeq above 2**32-1"),
    "scalarlg": Expected("3.1.2.5", False, None, None, "a response with such numbers is discarded"),
    "quotbal": Expected("3.1.2.6", False, None, None, NOT_PARSED),
    "ltgtruri": Expected("3.1.2.7", False, None, 400, "<> around the request's URI"),
    "lwsruri": Expected("3.1.2.8", False, None, None, NOT_PARSED),
    "lwsstart": Expected("3.1.2.9", False, 200, None, "may be refused; the SIP process is liberal"),
    "trws": Expected("3.1.2.10", False, 200, 200, "may be taken by the liberal"),
    "escruri": Expected("3.1.2.11", False, 400, 400, "header fields in the request's URI"),
    "baddate": Expected("3.1.2.12", False, 200, 200, "should be taken by who doesn't need the date"),
    "regbadct": Expected("3.1.2.13", False, None, 401, "unregistered either way"),
    "badaspec": Expected("3.1.2.14", False, 200, 200, "may be taken by the liberal"),
    "baddn": Expected("3.1.2.15", False, 200, 200, "may be taken by the liberal, who don't forward it"),
    "badvers": Expected("3.1.2.16", False, None, None, "refused without an answer",
                        "505 in the RFC; neither parser takes a Via of SIP/7.0, so no answer could find its way"),
    "mismatch01": Expected("3.1.2.17", False, 200, 400, "CSeq of another method",
                           "SIP process: the library answers an OPTIONS without a look at that"),
    "mismatch02": Expected("3.1.2.18", False, 405, 400, "an unknown method, CSeq of another one"),
    "bigcode": Expected("3.1.2.19", False, None, None, "dropped: no response has such a code"),
    "badbranch": Expected("3.2.1", False, 200, 200, "may be matched as RFC 2543 does"),
    "insuf": Expected("3.3.1", False, None, None, "refused without an answer: there is no Call-ID to put into one"),
    "unkscm": Expected("3.3.2", True, None, 416, "nobody knows this scheme",
                       "SIP process: the library's parser takes sip, sips, tel alone"),
    "novelsc": Expected("3.3.3", True, None, 416, "no scheme of ours",
                        "SIP process: the library's parser takes sip, sips, tel alone"),
    "unksm2": Expected("3.3.4", True, 405, 400, "no address of record"),
    "bext01": Expected("3.3.5", True, 200, 420, "extensions that nobody supports",
                       "SIP process: the library looks for Require in INVITEs alone"),
    "invut": Expected("3.3.6", True, 415, 415, "no session description"),
    "regaut01": Expected("3.3.7", True, None, 401, CHALLENGED,
                         "SIP process: the library's parser takes Digest alone, and drops it"),
    "multi01": Expected("3.3.8", False, 400, None, "two of what there may be one of"),
    "mcl01": Expected("3.3.9", False, 200, None, "two lengths",
                      "SIP process: the library takes the first for an OPTIONS; behind the edge none comes there"),
    "bcast": Expected("3.3.10", True, None, None, "a response to no request of ours, forwarded to nobody"),
    "zeromf": Expected("3.3.11", True, 200, 483, "an endpoint takes it, a proxy doesn't forward it"),
    "cparam01": Expected("3.3.12", True, 405, 401, CHALLENGED),
    "cparam02": Expected("3.3.13", True, 405, 401, CHALLENGED),
    "regescrt": Expected("3.3.14", True, 405, 401, CHALLENGED),
    "sdp01": Expected("3.3.15", True, 406, 406, "it takes no session description in the answer"),
    "inv2543": Expected("3.4.1", True, 400, 400, "an INVITE without Contact, as RFC 2543 had them",
                        "may be taken by who keeps to RFC 2543 too; we don't"),
}
