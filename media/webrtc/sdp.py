"""Session descriptions of browser calls: a checked offer, and the answer to it (pure; RFC 8829, 8843, 8839, 8841).

An offer has one section of sound with Opus, and may have one for a data channel; both share one transport, whose
attributes stand in the section that the bundle names first. Whatever else it asks for is refused in words.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

MOST_BYTES = 32 * 1024
MOST_LINES = 1000
MOST_CANDIDATES = 32
LONGEST_LINE = 1000
LOWEST_PORT = 1024
OPUS_RATE = 48_000  # of its RTP clock, whatever the sound's rate (RFC 7587)
SCTP_PORT = 5000

Setup = Literal["actpass", "active", "passive"]

_MEDIA = re.compile(r"(audio|application) \d{1,5} ([A-Z/]+) ([\w -]+)")
_TOKEN = re.compile(r"[A-Za-z0-9+/]+")
_MID = re.compile(r"[!-~]{1,32}")
_FINGERPRINT = re.compile(r"(sha-(?:256|384|512)) ([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31,63})")
_HASH_BYTES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
_CANDIDATE = re.compile(
    r"(?P<foundation>[A-Za-z0-9+/]{1,32}) (?P<component>\d{1,3}) (?P<protocol>udp|tcp) (?P<priority>\d{1,10}) "
    r"(?P<address>[!-~]{1,255}) (?P<port>\d{1,5}) typ (?P<kind>host|srflx|prflx|relay)(?: .*)?", re.IGNORECASE)


class BadSdp(ValueError):
    """An offer that isn't taken; one line says why."""


@dataclass(frozen=True)
class Section:
    """One m-line: what the answer has to repeat."""

    kind: Literal["audio", "application"]
    mid: str


@dataclass(frozen=True)
class Transport:
    """One side's ICE credentials and DTLS fingerprints."""

    ufrag: str
    password: str
    fingerprints: tuple[tuple[str, str], ...]  # algorithm, value
    candidates: tuple[str, ...] = ()  # what follows `candidate:`


@dataclass(frozen=True)
class Offer:
    """What an answer and its transports need of an offer."""

    sections: tuple[Section, ...]
    payload_type: int  # of Opus
    setup: Setup
    ice_lite: bool
    sctp_port: int
    transport: Transport


@dataclass
class _Lines:
    """A section's lines by attribute."""

    head: str = ""
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def one(self, name: str) -> str | None:
        return self.attributes[name][0] if name in self.attributes else None


def parse_offer(sdp: str) -> Offer:
    """The offer in `sdp`; raises BadSdp."""
    session, media = _split(sdp)
    sections = tuple(_section(lines) for lines in media)
    kinds = [section.kind for section in sections]
    if sorted(kinds) not in (["audio"], ["application", "audio"]):
        raise BadSdp("an offer has one section of sound, and at most one for a data channel")
    bundle = _bundle(session, sections)
    first = media[[section.mid for section in sections].index(bundle)]
    audio = media[kinds.index("audio")]
    if "rtcp-mux" not in audio.attributes:
        raise BadSdp("sound and its reports must share a port (rtcp-mux)")
    if any(side in audio.attributes for side in ("recvonly", "inactive")):
        raise BadSdp("the sound must be sent, not only received")
    data = media[kinds.index("application")] if "application" in kinds else None
    return Offer(
        sections, _opus(audio), _setup(first, session),
        "ice-lite" in session.attributes, _sctp_port(data), _transport(first, session, media))


def _split(sdp: str) -> tuple[_Lines, list[_Lines]]:
    if len(sdp) > MOST_BYTES:
        raise BadSdp(f"an offer has at most {MOST_BYTES} bytes")
    lines = sdp.replace("\r\n", "\n").split("\n")
    if len(lines) > MOST_LINES:
        raise BadSdp(f"an offer has at most {MOST_LINES} lines")
    if lines[0] != "v=0":
        raise BadSdp("an offer begins with v=0")
    session, media = _Lines(), []
    current = session
    for line in lines:
        if not line:
            continue
        if len(line) > LONGEST_LINE or not line.isprintable() or line[1:2] != "=":
            raise BadSdp(f"not a line of a session description: {line[:60]!r}")
        if line.startswith("m="):
            current = _Lines(line[2:])
            media.append(current)
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            current.attributes.setdefault(name, []).append(value)
    return session, media


def _section(lines: _Lines) -> Section:
    found = _MEDIA.fullmatch(lines.head)
    if found is None:
        raise BadSdp(f"not a section that is taken: {lines.head[:60]!r}")
    mid = lines.one("mid")
    if mid is None or not _MID.fullmatch(mid):
        raise BadSdp("each section has a mid")
    kind: Literal["audio", "application"] = "audio" if found[1] == "audio" else "application"
    wanted = "UDP/TLS/RTP/SAVPF" if kind == "audio" else "UDP/DTLS/SCTP"
    if found[2] != wanted:
        raise BadSdp(f"a section of kind {kind} is sent by {wanted}")
    return Section(kind, mid)


def _bundle(session: _Lines, sections: tuple[Section, ...]) -> str:
    """The mid whose section has the transport's attributes."""
    mids = [section.mid for section in sections]
    if len(set(mids)) != len(mids):
        raise BadSdp("two sections have the same mid")
    for group in session.attributes.get("group", []):
        name, *members = group.split()
        if name == "BUNDLE" and sorted(members) == sorted(mids):
            return members[0]
    if len(mids) == 1:
        return mids[0]
    raise BadSdp("all sections must share one transport (BUNDLE)")


def _opus(audio: _Lines) -> int:
    for rtpmap in audio.attributes.get("rtpmap", []):
        found = re.fullmatch(rf"(\d{{1,3}}) opus/{OPUS_RATE}/2", rtpmap, re.IGNORECASE)
        if found and 96 <= int(found[1]) <= 127 and found[1] in audio.head.split()[3:]:
            return int(found[1])
    raise BadSdp("the sound must be offered as Opus")


def _setup(first: _Lines, session: _Lines) -> Setup:
    match first.one("setup") or session.one("setup"):
        case "actpass":
            return "actpass"
        case "active":
            return "active"
        case "passive":
            return "passive"
        case other:
            raise BadSdp(f"setup: {other!r} is none of actpass, active, passive")


def _transport(first: _Lines, session: _Lines, media: list[_Lines]) -> Transport:
    ufrag, password = (first.one(name) or session.one(name) or "" for name in ("ice-ufrag", "ice-pwd"))
    if not _TOKEN.fullmatch(ufrag) or not 4 <= len(ufrag) <= 256:
        raise BadSdp("ice-ufrag: 4 to 256 letters and digits")
    if not _TOKEN.fullmatch(password) or not 22 <= len(password) <= 256:
        raise BadSdp("ice-pwd: 22 to 256 letters and digits")
    fingerprints = []
    for value in first.attributes.get("fingerprint") or session.attributes.get("fingerprint", []):
        found = _FINGERPRINT.fullmatch(value)
        if found and (found[2].count(":") + 1) == _HASH_BYTES[found[1]]:
            fingerprints.append((found[1], found[2]))
    if not 1 <= len(fingerprints) <= 4:
        raise BadSdp("fingerprint: one to four of sha-256, sha-384 or sha-512")
    if sum(len(lines.attributes.get("candidate", [])) for lines in media) > MOST_CANDIDATES:
        raise BadSdp(f"an offer has at most {MOST_CANDIDATES} candidates")
    candidates = [value for value in first.attributes.get("candidate", []) if _usable(value)]
    return Transport(ufrag, password, tuple(fingerprints), tuple(candidates))


def _usable(candidate: str) -> bool:
    """Whether we send checks there: UDP to one host's address, at a port that no old service has. Names (.local) are
    none of ours to look up: their owner's own checks tell where they come from. Raises BadSdp for what is no candidate.
    """
    found = _CANDIDATE.fullmatch(candidate)
    if found is None or int(found["port"]) > 65535 or int(found["priority"]) >= 2**32:
        raise BadSdp(f"not a candidate: {candidate[:60]!r}")
    if found["protocol"].lower() != "udp" or found["component"] != "1" or int(found["port"]) < LOWEST_PORT:
        return False
    try:
        address = ipaddress.ip_address(found["address"])
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified or address.is_reserved
                or address == ipaddress.ip_address("255.255.255.255"))


def _sctp_port(data: _Lines | None) -> int:
    port = data.one("sctp-port") if data else None
    if port is None:
        return SCTP_PORT
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) <= 65535:
        raise BadSdp("sctp-port: a port")
    return int(port)


def render_answer(offer: Offer, ours: Transport, setup: Literal["active", "passive"], session_id: int,
                  max_message_bytes: int, ssrc: int) -> str:
    """The answer: every section of the offer, all on one transport of ours, Opus at 20 ms in mono."""
    mids = " ".join(section.mid for section in offer.sections)
    lines = ["v=0", f"o=- {session_id} {session_id} IN IP4 127.0.0.1", "s=-", "t=0 0", f"a=group:BUNDLE {mids}",
             "a=msid-semantic: WMS tandem"]
    transport = [
        f"a=ice-ufrag:{ours.ufrag}", f"a=ice-pwd:{ours.password}", "a=ice-options:trickle",
        *(f"a=fingerprint:{algorithm} {value}" for algorithm, value in ours.fingerprints), f"a=setup:{setup}",
        *(f"a=candidate:{candidate}" for candidate in ours.candidates), "a=end-of-candidates"]
    for section in offer.sections:
        if section.kind == "audio":
            payload = offer.payload_type
            lines += [
                f"m=audio 9 UDP/TLS/RTP/SAVPF {payload}", "c=IN IP4 0.0.0.0", "a=rtcp:9 IN IP4 0.0.0.0",
                f"a=mid:{section.mid}", "a=sendrecv", "a=msid:tandem agent", "a=rtcp-mux",
                f"a=rtpmap:{payload} opus/{OPUS_RATE}/2",
                f"a=fmtp:{payload} minptime=20;maxplaybackrate=24000;sprop-maxcapturerate=24000;stereo=0",
                "a=ptime:20", "a=maxptime:20", f"a=ssrc:{ssrc} cname:tandem"]
        else:
            lines += [
                "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", f"a=mid:{section.mid}",
                f"a=sctp-port:{SCTP_PORT}", f"a=max-message-size:{max_message_bytes}"]
        lines += transport
    return "\r\n".join(lines) + "\r\n"
