"""A bare telephone: SIP by hand and G.711 packets on an exact clock, without a jitter buffer or a sound device.

What it measures is the other side's alone. Its clock may be wrong on purpose.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from media.telephone import LINE_RATE, PACKET, decode_g711, encode_g711

PACKET_S = PACKET / LINE_RATE
SIP_TIMEOUT_S = 10.0
T1_S = 0.5  # until a request that nobody answers is sent again
PCMU = 0
_HEADER = struct.Struct("!BBHII")

Linear = npt.NDArray[np.int16]


class CallFailed(Exception):
    """One line that says what the other side answered."""


@dataclass
class Talk:
    """What was sent and what came, packet by packet. Moments are time.monotonic's."""

    sent_at: list[float] = field(default_factory=list)
    came_at: list[float] = field(default_factory=list)
    came: list[Linear] = field(default_factory=list)  # [PACKET] each, in the order of arrival
    numbers: list[int] = field(default_factory=list)  # their sequence numbers


def call(uri: str, seconds: float, said: Callable[[int], Linear], *, clock: float = 1.0) -> Talk:
    """Call `uri` (sip:user@host:port) and send `said(n)`, the n-th 20 ms, for so long; `clock` above 1 is fast.

    Raises CallFailed.
    """
    user, host, port = re.fullmatch(r"sip:([^@]+)@([^:]+):(\d+)", uri).groups()  # type: ignore[union-attr]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sip, socket.socket(socket.AF_INET,
                                                                               socket.SOCK_DGRAM) as rtp:
        sip.bind((host, 0))
        rtp.bind((host, 0))
        dialog = Dialog(sip, (host, int(port)), user)
        there = dialog.invite(rtp.getsockname()[1])
        try:
            return _talk(rtp, there, seconds, said, clock)
        finally:
            dialog.bye()


def _talk(rtp: socket.socket, there: tuple[str, int], seconds: float, said: Callable[[int], Linear], clock: float,
          ) -> Talk:
    talk, source = Talk(), secrets.randbits(32)
    rtp.setblocking(False)
    began, step_s = time.monotonic(), PACKET_S / clock
    for number in range(round(seconds / step_s)):
        due = began + number * step_s
        while (left_s := due - time.monotonic()) > 0:
            _take(rtp, talk)
            time.sleep(min(left_s, 0.001))
        header = _HEADER.pack(0x80, PCMU, number & 0xFFFF, number * PACKET & 0xFFFFFFFF, source)
        talk.sent_at.append(time.monotonic())
        rtp.sendto(header + encode_g711(said(number), "mu").tobytes(), there)
        _take(rtp, talk)
    return talk


def _take(rtp: socket.socket, talk: Talk) -> None:
    while True:
        try:
            data = rtp.recv(2048)
        except BlockingIOError:
            return
        if len(data) == _HEADER.size + PACKET and data[1] & 0x7F == PCMU:
            talk.came_at.append(time.monotonic())
            talk.came.append(decode_g711(np.frombuffer(data[_HEADER.size:], np.uint8), "mu"))
            talk.numbers.append(struct.unpack_from("!H", data, 2)[0])


class Dialog:
    """As much of a SIP user agent as one call takes (RFC 3261)."""

    def __init__(self, sip: socket.socket, there: tuple[str, int], user: str) -> None:
        self._sip, self._there, self._user = sip, there, user
        self._here = "{}:{}".format(*sip.getsockname())
        self.id, self._tag, self._to_tag = secrets.token_hex(12), secrets.token_hex(6), ""

    def invite(self, rtp_port: int) -> tuple[str, int]:
        """Returns where the other side wants its packets."""
        host = self._here.partition(":")[0]
        sdp = (f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\n"
               f"m=audio {rtp_port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=ptime:20\r\na=sendrecv\r\n")
        request = self._send("INVITE", 1, sdp)
        deadline, pause_s, heard = time.monotonic() + SIP_TIMEOUT_S, T1_S, False
        while True:
            left_s = max(0.01, deadline - time.monotonic())
            self._sip.settimeout(left_s if heard else min(left_s, pause_s))
            try:
                answer = self._sip.recv(65535).decode("utf-8", "replace")
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise CallFailed(f"no answer within {SIP_TIMEOUT_S:g} s") from None
                self._sip.sendto(request, self._there)  # the same again (17.1.1.2)
                pause_s *= 2
                continue
            heard = True
            status = int(answer.split(" ", 2)[1]) if answer.startswith("SIP/2.0 ") else 0
            if status >= 200:
                found = re.search(r"^To:.*;tag=([^;\r\n]+)", answer, re.M | re.I)
                self._to_tag = f";tag={found[1]}" if found else ""
                self._send("ACK", 1)
                if status != 200:
                    raise CallFailed(answer.splitlines()[0])
                media = re.search(r"^m=audio (\d+)", answer, re.M)
                where = re.search(r"^c=IN IP4 ([\d.]+)", answer, re.M)
                if media is None or where is None:
                    raise CallFailed("an answer without sound")
                return where[1], int(media[1])

    def bye(self) -> None:
        self._send("BYE", 2)
        self._sip.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            self._sip.recv(65535)

    def _send(self, method: str, number: int, body: str = "") -> bytes:
        target = f"sip:{self._user}@{self._there[0]}:{self._there[1]}"
        lines = [
            f"{method} {target} SIP/2.0",
            f"Via: SIP/2.0/UDP {self._here};branch=z9hG4bK{secrets.token_hex(8)};rport",
            "Max-Forwards: 70", f"From: <sip:bare@{self._here}>;tag={self._tag}", f"To: <{target}>{self._to_tag}",
            f"Call-ID: {self.id}", f"CSeq: {number} {method}", f"Contact: <sip:bare@{self._here}>",
            *(["Content-Type: application/sdp"] if body else []), f"Content-Length: {len(body)}", "", body]
        request = "\r\n".join(lines).encode()
        self._sip.sendto(request, self._there)
        return request
