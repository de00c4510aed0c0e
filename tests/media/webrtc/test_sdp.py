from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media.webrtc.sdp import MOST_CANDIDATES, BadSdp, Offer, Section, Transport, parse_offer, render_answer

PRINT = ":".join(["AB"] * 32)
HOST = "candidate:1 1 udp 2122194687 192.0.2.2 43078 typ host generation 0 network-id 1"
TRANSPORT = f"""a={HOST}
a=ice-ufrag:/xOQ
a=ice-pwd:RUAc1zrywNTtsLEA7eF4Vqo1
a=fingerprint:sha-256 {PRINT}
a=setup:actpass
"""
AUDIO = f"""m=audio 43078 UDP/TLS/RTP/SAVPF 111 63 9 0
c=IN IP4 192.0.2.2
{TRANSPORT}a=mid:0
a=sendrecv
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:63 red/48000/2
"""
DATA = f"""m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
{TRANSPORT}a=mid:1
a=sctp-port:5001
"""
SESSION = """v=0
o=- 7322754727507300392 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
"""
OFFER = SESSION + AUDIO + DATA


def test_what_a_browser_offers_is_read() -> None:
    offer = parse_offer(OFFER.replace("\n", "\r\n"))
    assert offer.sections == (Section("audio", "0"), Section("application", "1"))
    assert (offer.payload_type, offer.setup, offer.sctp_port, offer.ice_lite) == (111, "actpass", 5001, False)
    assert offer.transport == Transport(
        "/xOQ", "RUAc1zrywNTtsLEA7eF4Vqo1", (("sha-256", PRINT),), (HOST.removeprefix("candidate:"),))


def test_an_offer_of_sound_alone_is_taken() -> None:
    assert parse_offer(SESSION.replace("BUNDLE 0 1", "BUNDLE 0") + AUDIO).sections == (Section("audio", "0"),)


def test_the_transport_is_that_of_the_section_which_the_bundle_names_first() -> None:
    other = DATA.replace("/xOQ", "other")
    swapped = SESSION.replace("BUNDLE 0 1", "BUNDLE 1 0") + AUDIO + other
    assert parse_offer(swapped).transport.ufrag == "other"


def test_credentials_may_stand_at_the_sessions_level() -> None:
    bare = OFFER
    for line in TRANSPORT.strip().split("\n"):
        if not line.startswith("a=candidate"):
            bare = bare.replace(line + "\n", "")
            bare = bare.replace("a=group", f"{line}\na=group", 1)
    assert parse_offer(bare).transport.fingerprints == (("sha-256", PRINT),)


@pytest.mark.parametrize(("was", "becomes", "why"), [
    ("v=0", "v=1", "begins with v=0"),
    ("m=audio 43078 UDP/TLS/RTP/SAVPF", "m=audio 43078 RTP/AVP", "kind audio is sent by"),
    ("m=audio", "m=video", "not a section"),
    ("a=mid:1", "a=mid:0", "same mid"),
    ("a=mid:0\n", "", "has a mid"),
    ("BUNDLE 0 1", "BUNDLE 0", "share one transport"),
    ("a=rtcp-mux\n", "", "rtcp-mux"),
    ("a=sendrecv", "a=recvonly", "must be sent"),
    ("opus/48000/2", "G722/8000", "as Opus"),
    ("a=rtpmap:111", "a=rtpmap:112", "as Opus"),
    ("a=setup:actpass", "a=setup:holdconn", "actpass, active, passive"),
    ("/xOQ", "/x", "ice-ufrag"),
    ("RUAc1zrywNTtsLEA7eF4Vqo1", "short", "ice-pwd"),
    ("RUAc1zrywNTtsLEA7eF4Vqo1", "RUAc1zrywNTtsLEA7 F4Vqo1", "ice-pwd"),
    (f"sha-256 {PRINT}", "sha-256 AB:CD", "fingerprint"),
    (f"sha-256 {PRINT}", f"sha-1 {PRINT}", "fingerprint"),
    ("sctp-port:5001", "sctp-port:99999", "sctp-port"),
    ("candidate:1 1 udp", "candidate:1 1 sctp", "not a candidate"),
    ("43078 typ host", "99999 typ host", "not a candidate"),
    ("a=sendrecv", "a=sendrecv\na=x:" + "y" * 2000, "not a line"),
    ("a=sendrecv", "a=send\x07recv", "not a line"),
    ("a=sendrecv", "nonsense", "not a line"),
    ("a=sendrecv", "a=sendrecv\n" + "a=x\n" * 2000, "at most 1000 lines"),
    ("a=sendrecv", "a=sendrecv\n" + f"a={'x' * 900}\n" * 50, "bytes"),
    ("a=sendrecv", "a=sendrecv\n" + f"a={HOST}\n" * MOST_CANDIDATES, "candidates"),
])
def test_an_offer_that_is_wrong_is_refused_in_words(was: str, becomes: str, why: str) -> None:
    assert was in OFFER
    with pytest.raises(BadSdp, match=why):
        parse_offer(OFFER.replace(was, becomes))


def test_a_second_section_of_sound_is_refused() -> None:
    with pytest.raises(BadSdp, match="one section of sound"):
        parse_offer(OFFER + AUDIO.replace("mid:0", "mid:2"))


@pytest.mark.parametrize("candidate", [
    "1 1 tcp 1518214911 192.0.2.2 9 typ host tcptype active",  # not our way
    "1 1 udp 2122194687 c2b5a2.local 43078 typ host",  # a name
    "1 2 udp 2122194687 192.0.2.2 43078 typ host",  # reports have no port of their own
    "1 1 udp 2122194687 224.0.0.251 5353 typ host",
    "1 1 udp 2122194687 255.255.255.255 43078 typ host",
    "1 1 udp 2122194687 0.0.0.0 43078 typ host",
    "1 1 udp 2122194687 192.0.2.2 53 typ host",
])
def test_nothing_is_sent_to_where_no_browser_is(candidate: str) -> None:
    assert parse_offer(OFFER.replace(HOST, f"candidate:{candidate}")).transport.candidates == ()


@given(st.text(max_size=300))
def test_any_text_is_an_offer_or_refused(text: str) -> None:
    for sdp in (text, OFFER + text, OFFER.replace("a=sendrecv", text)):
        with contextlib.suppress(BadSdp):
            assert isinstance(parse_offer(sdp), Offer)


def test_the_answer_repeats_every_section_on_one_transport() -> None:
    ours = Transport("ours", "p" * 22, (("sha-256", PRINT),), ("1 1 udp 1 127.0.0.1 4000 typ host",))
    lines = render_answer(parse_offer(OFFER), ours, "active", 7, 16384, 99).split("\r\n")
    assert "a=group:BUNDLE 0 1" in lines
    assert [line for line in lines if line.startswith("m=")] == [
        "m=audio 9 UDP/TLS/RTP/SAVPF 111", "m=application 9 UDP/DTLS/SCTP webrtc-datachannel"]
    assert lines.count("a=ice-ufrag:ours") == 2
    assert lines.count("a=setup:active") == 2
    assert "a=rtpmap:111 opus/48000/2" in lines
    assert "a=max-message-size:16384" in lines
    assert "a=candidate:1 1 udp 1 127.0.0.1 4000 typ host" in lines
    assert lines[-1] == ""
