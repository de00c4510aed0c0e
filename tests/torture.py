"""The messages of RFC 4475, and somebody who sends them: octet by octet, by the transport that their top Via names.

They are kept as the RFC prints them, in its markup (section 2), in tests/sip/rfc4475.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "sip" / "rfc4475"
SIP_PORT = 5060  # where answers go when a Via names none
PATIENCE_S = 5.0  # for an answer that is due
SILENCE_S = 0.4  # without an answer there will be none


def octets(name: str) -> bytes:
    """A message as it is sent."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="ascii")
    text = re.sub(r"<hex>([^<]*)</hex>", lambda found: bytes.fromhex("".join(found[1].split())).decode("latin-1")
                  .replace("\r", "\N{SYMBOL FOR CARRIAGE RETURN}").replace("\n", "\N{SYMBOL FOR LINE FEED}"), text)
    text = re.sub(r"<repeat count=(\d+)>(.*?)</repeat>", lambda found: int(found[1]) * found[2], text)
    text = re.sub(r"<allOneLine>\n(.*?)\n</allOneLine>", lambda found: found[1].replace("\n", ""), text, flags=re.S)
    text = text.replace("\n", "\r\n").replace("\N{SYMBOL FOR CARRIAGE RETURN}", "\r")
    return text.replace("\N{SYMBOL FOR LINE FEED}", "\n").encode("latin-1")


@dataclass(frozen=True)
class Answer:
    """A response, as far as these tests look at it."""

    status: int
    text: str

    def values(self, name: str) -> list[str]:
        found: list[str] = re.findall(rf"(?im)^{name}\s*:\s*(.*?)\s*$", self.text)
        return found


class Sender:
    """Sends from one address of its own, so that nobody else's answers come to it."""

    def __init__(self, source: str, port: int, tls_port: int = 0) -> None:
        self._source, self._port, self._tls_port = source, port, tls_port
        self._branches: set[bytes] = set()

    def ask(self, message: bytes, patience_s: float = PATIENCE_S) -> Answer | None:
        """The final answer; None where there is none. A call that is taken is acknowledged and hung up.

        Many of the RFC's messages have one branch in common, and stay apart by their Vias' hosts (RFC 3261, 17.2.3).
        The SIP library looks at the branch alone, so a branch that has been sent gets a suffix.
        """
        message = self._apart(message)
        head = re.sub(r"\r\n[ \t]+", " ", message.partition(b"\r\n\r\n")[0].decode("latin-1")).replace("\r", "")
        call_ids = re.findall(r"(?im)^(?:call-id|i)\s*:\s*(\S+)", head)
        via = re.search(r"(?im)^(?:via|v)\s*:\s*SIP\s*/\s*[\d.]+\s*/\s*(\w+)\s+[^\s;:]+(?::(\d+))?", head)
        assert via is not None
        with self._connected(via[1], int(via[2] or SIP_PORT)) as line:
            line.sendall(message)
            for answer in _answers(line, patience_s):
                if answer.status >= 200 and set(call_ids) >= set(answer.values("(?:call-id|i)")):
                    if answer.status == 200 and head.startswith("INVITE"):
                        line.sendall(_within(answer, head, "ACK"))
                        line.sendall(_within(answer, head, "BYE"))
                        next((other for other in _answers(line, patience_s) if "BYE" in other.values("cseq")[0]), None)
                    elif head.startswith("INVITE"):
                        line.sendall(_within(answer, head, "ACK"))
                    return answer
        return None

    def _apart(self, message: bytes) -> bytes:
        branch = re.search(rb"z9hG4bK[^;,\s]+", message)
        if branch is None:
            return message
        if branch[0] in self._branches:
            message = message.replace(branch[0], b"%s.%d" % (branch[0], len(self._branches)), 1)
        self._branches.add(message[branch.start():].split(b";")[0].split(b"\r")[0])
        return message

    def _connected(self, transport: str, port: int) -> socket.socket:
        if transport not in ("TCP", "TLS"):
            udp = socket.socket(type=socket.SOCK_DGRAM)
            udp.bind((self._source, port))
            udp.connect(("127.0.0.1", self._port))
            return udp
        tls = transport == "TLS" and self._tls_port
        tcp = socket.create_connection(("127.0.0.1", self._tls_port if tls else self._port), 5, (self._source, 0))
        if not tls:
            return tcp
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(tcp)


def _answers(line: socket.socket, patience_s: float) -> Iterator[Answer]:
    """Until nothing has come for so long."""
    pending, deadline = b"", time.monotonic() + 10 * patience_s
    line.settimeout(patience_s)
    while time.monotonic() < deadline:
        try:
            came = line.recv(65536)
        except (TimeoutError, ConnectionError):
            return
        if not came:
            return
        pending += came
        while (end := pending.find(b"\r\n\r\n")) >= 0:
            text = pending[:end].decode("latin-1")
            length = re.search(r"(?im)^(?:content-length|l)\s*:\s*(\d+)", text)
            pending = pending[end + 4 + int(length[1] if length else 0):]
            if text.startswith("SIP/2.0 "):
                yield Answer(int(text.split()[1]), text)


def _within(answer: Answer, head: str, method: str) -> bytes:
    """A request of the dialog that the answer belongs to, or the ACK for a refusal."""
    number = re.search(r"(?im)^cseq\s*:\s*(\d+)", head)
    uri = re.search(r"(?im)^(?:contact|m)\s*:.*?<([^>]*)>", answer.text) if answer.status == 200 else None
    assert number is not None
    target = uri[1] if uri else head.split(" ")[1]
    via = re.search(r"(?im)^(?:via|v)\s*:\s*(.*)$", head)
    assert via is not None
    hop = via[1]  # of the same transaction where it acknowledges a refusal, of another one else
    if answer.status == 200:
        hop = re.sub(r";\s*branch\s*=[^;\s]*|$", f";branch=z9hG4bK{uuid.uuid4().hex}", hop.split(",")[0], count=1)
    lines = [f"{method} {target} SIP/2.0", f"Via: {hop}",
             *(f"Route: {route}" for value in answer.values("record-route") for route in reversed(value.split(","))),
             *(f"{name}: {answer.values(f'(?:{name}|{name[0]})')[0]}" for name in ("From", "To")),
             f"Call-ID: {answer.values('(?:call-id|i)')[0]}",
             f"CSeq: {int(number[1]) + (method == 'BYE')} {method}", "Max-Forwards: 70", "Content-Length: 0", "", ""]
    return "\r\n".join(lines).encode("latin-1")
