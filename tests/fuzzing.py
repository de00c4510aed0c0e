"""SIP messages with something wrong in them, from real ones, by a seed: RFC 4475's, and a call's as phones send them.

TANDEM_TEST_FUZZ_MESSAGES says how many, TANDEM_TEST_FUZZ_SEED which (`make fuzz`: many, new ones each time).
"""

from __future__ import annotations

import os
import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator

import psutil
from torture import octets
from torture_table import TABLE

MESSAGES = int(os.environ.get("TANDEM_TEST_FUZZ_MESSAGES", "400"))
SEED = os.environ.get("TANDEM_TEST_FUZZ_SEED", "4475")
PACE_S = 0.004  # between two messages: below what bans a trunk
GROWTH_MB = 40  # of each process over a run
LONGEST = 60000  # of a datagram
_CALL = (b"INVITE sip:agent@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.25:5060;rport;branch=z9hG4bK-fuzz\r\n"
         b"Max-Forwards: 70\r\nFrom: \"Ann\" <sip:ann@127.0.0.25>;tag=1a\r\nTo: <sip:agent@127.0.0.1>\r\n"
         b"Call-ID: fuzz@127.0.0.25\r\nCSeq: 1 INVITE\r\nContact: <sip:ann@127.0.0.25:5060>\r\n"
         b"Supported: timer, replaces\r\nSession-Expires: 1800\r\nAllow: INVITE, ACK, BYE, CANCEL, UPDATE, INFO\r\n"
         b"User-Agent: fuzz\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s")
_SDP = (b"v=0\r\no=- 1 1 IN IP4 127.0.0.25\r\ns=-\r\nc=IN IP4 127.0.0.25\r\nt=0 0\r\na=sendrecv\r\n"
        b"m=audio 40000 RTP/AVP 9 0 8 101\r\na=rtpmap:9 G722/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 "
        b"telephone-event/8000\r\na=fmtp:101 0-16\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:%s\r\na=ptime:20\r\n")
_ODD = (b"\0", b"\xff\xfe", b"%00", b"\r\n", b"\n ", b"<>", b'"', b";;;", b",", b"4294967296", b"-1", b"9" * 60,
        b" " * 300, b"A" * 5000, b"@", b"[::1]", b"sip:", b"\r\n\r\n", b"${jndi}", b"%s%n", b";lr;lr", b"z9hG4bK")


def messages() -> Iterator[bytes]:
    draw = random.Random(SEED)
    base = [_CALL % (len(_SDP) + 38, _SDP % (b"A" * 40)), *(octets(name) for name in sorted(TABLE))]
    for _ in range(MESSAGES):
        message = draw.choice(base) if draw.random() < 0.7 else base[0]
        if draw.random() < 0.5:  # a new transaction and call, so that it isn't taken for one sent again
            mark = uuid.UUID(int=draw.getrandbits(128)).hex[:12].encode()
            message = re.sub(rb"(branch=z9hG4bK|(?m:^)(?:Call-ID|i): ?)", rb"\g<1>" + mark, message)
        for _ in range(draw.randint(1, 4)):
            message = draw.choice(_MUTATIONS)(draw, message, draw.choice(base))
        yield message[:LONGEST]


def _place(draw: random.Random, message: bytes) -> tuple[int, int]:
    begin = draw.randrange(len(message) + 1)
    return begin, min(len(message), begin + draw.choice((1, 1, 4, 30, 200)))


def _flip(draw: random.Random, message: bytes, _: bytes) -> bytes:
    begin, end = _place(draw, message)
    return message[:begin] + draw.randbytes(end - begin) + message[end:]


def _drop(draw: random.Random, message: bytes, _: bytes) -> bytes:
    begin, end = _place(draw, message)
    return message[:begin] + message[end:]


def _repeat(draw: random.Random, message: bytes, _: bytes) -> bytes:
    begin, end = _place(draw, message)
    return message[:begin] + draw.choice((2, 5, 50)) * message[begin:end] + message[end:]


def _insert(draw: random.Random, message: bytes, _: bytes) -> bytes:
    begin, _end = _place(draw, message)
    return message[:begin] + draw.choice(_ODD) + message[begin:]


def _number(draw: random.Random, message: bytes, _: bytes) -> bytes:
    found = list(re.finditer(rb"\d+", message))
    if not found:
        return message
    one = draw.choice(found)
    odd = draw.choice((b"0", b"-1", b"65536", b"4294967295", b"4294967296", b"9" * 40, b"1e9", b""))
    return message[:one.start()] + odd + message[one.end():]


def _lines(draw: random.Random, message: bytes, _: bytes) -> bytes:
    lines = message.split(b"\r\n")
    at = draw.randrange(len(lines))
    match draw.randrange(3):
        case 0:
            lines[at:at + 1] = draw.choice((2, 40, 150)) * [lines[at]]
        case 1:
            draw.shuffle(lines)
        case _:
            del lines[at]
    return b"\r\n".join(lines)


def _splice(draw: random.Random, message: bytes, other: bytes) -> bytes:
    return message[:draw.randrange(len(message) + 1)] + other[draw.randrange(len(other) + 1):]


_MUTATIONS: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    _flip, _drop, _repeat, _insert, _number, _lines, _splice)


def send(port: int, source: str) -> None:
    """All of them, most by UDP, some by TCP, whatever comes back."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind((source, 5060))
        udp.setblocking(False)
        for number, message in enumerate(messages()):
            if number % 10:
                udp.sendto(message, ("127.0.0.1", port))
            else:
                with socket.create_connection(("127.0.0.1", port), 5, (source, 0)) as tcp:
                    tcp.sendall(message)
            time.sleep(PACE_S)


def memory_mb(pids: list[int]) -> dict[int, float]:
    return {pid: psutil.Process(pid).memory_info().rss / 1e6 for pid in pids}


def grew_mb(before: dict[int, float]) -> float:
    """By how much the one did that grew most."""
    return max(now - before[pid] for pid, now in memory_mb(list(before)).items())
