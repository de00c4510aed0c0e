"""A telephone on a thread of its own: a tone goes out, what comes back is timed, while a test does something."""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bench.rtp_peer import PACKET_S, PCMU, CallFailed, Dialog
from media.telephone import LINE_RATE, PACKET, decode_g711, encode_g711

__all__ = ["BarePhone", "CallFailed", "calling"]

_HEADER = struct.Struct("!BBHII")
_TONE = (8000 * np.sin(2 * np.pi * 400 * np.arange(PACKET) / LINE_RATE)).astype(np.int16)  # whole periods
LOUD_RMS = 500  # of what comes back
POLL_S = 0.02


class BarePhone:
    """One call. Moments are time.monotonic's."""

    def __init__(self, uri: str, *, says: npt.NDArray[np.int16] = _TONE) -> None:
        """`says` [samples at LINE_RATE], over and over. Raises CallFailed when it isn't answered."""
        user, host, port = re.fullmatch(r"sip:([^@]+)@([^:]+):(\d+)", uri).groups()  # type: ignore[union-attr]
        self._sip, self._rtp = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for each in (self._sip, self._rtp):
            each.bind((host, 0))
        self._there = (host, int(port))
        self._said = _packets(says)
        self._lines: deque[bytes] = deque()  # said before it goes on with the other
        self._dialog = Dialog(self._sip, self._there, user)
        self.reference = self._dialog.id
        try:
            self._media = self._dialog.invite(self._rtp.getsockname()[1])
        except BaseException:
            self._close()
            raise
        self.answered_at = time.monotonic()
        self.loud_at: list[float] = []  # when sound came
        self.hung_up = threading.Event()  # by the other side
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def say(self, line: npt.NDArray[np.int16]) -> float:
        """Once, in place of what is said over and over. Returns when it will have been said."""
        packets = _packets(line)
        self._lines.extend(packets)
        return time.monotonic() + len(packets) * PACKET_S

    def wait_for_quiet(self, seconds: float, timeout_s: float = 30.0) -> float:
        """Until nothing has come for so long; returns when the last sound came."""
        began = time.monotonic()
        while time.monotonic() - (last := max([began, *self.loud_at[-1:]])) < seconds:
            assert time.monotonic() < began + timeout_s, "it doesn't stop"
            time.sleep(POLL_S)
        return last

    def wait_for_sound(self, since: float, timeout_s: float = 10.0) -> float:
        """How long after `since` some came."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.loud_at and self.loud_at[-1] > since:
                return next(at for at in self.loud_at if at > since) - since
            assert time.monotonic() < deadline, "it stays silent"
            time.sleep(POLL_S)

    def longest_silence(self, since: float) -> float:
        """Between two packets with sound, from `since` until now."""
        moments = [since, *(at for at in self.loud_at if at > since), time.monotonic()]
        return max(after - before for before, after in itertools.pairwise(moments))

    def hang_up(self) -> None:
        self._over.set()
        self._thread.join()
        if not self.hung_up.is_set():
            self._dialog.bye()
        self._close()

    def _close(self) -> None:
        self._sip.close()
        self._rtp.close()

    def _talk(self) -> None:
        source, began = secrets.randbits(32), time.monotonic()
        self._sip.setblocking(False)
        self._rtp.setblocking(False)
        number = 0
        while not self._over.is_set():
            if (left_s := began + number * PACKET_S - time.monotonic()) > 0:
                time.sleep(min(left_s, 0.002))
            else:
                header = _HEADER.pack(0x80, PCMU, number & 0xFFFF, number * PACKET & 0xFFFFFFFF, source)
                with contextlib.suppress(OSError):  # nobody is there just now
                    said = self._lines.popleft() if self._lines else self._said[number % len(self._said)]
                    self._rtp.sendto(header + said, self._media)
                number += 1
            self._take()
            self._answer()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = self._rtp.recv(2048)
                if len(data) == _HEADER.size + PACKET and data[1] & 0x7F == PCMU:
                    pcm = decode_g711(np.frombuffer(data[_HEADER.size:], np.uint8), "mu").astype(np.float64)
                    if np.sqrt(np.mean(np.square(pcm))) > LOUD_RMS:
                        self.loud_at.append(time.monotonic())

    def _answer(self) -> None:
        """The other side's requests: a BYE ends the call."""
        with contextlib.suppress(OSError):
            request, there = self._sip.recvfrom(65535)
            text = request.decode("utf-8", "replace")
            if not text.startswith("SIP/2.0") and not text.startswith("ACK"):
                kept = [line for line in text.split("\r\n\r\n")[0].split("\r\n")[1:]
                        if line.split(":")[0].lower() in ("via", "from", "to", "call-id", "cseq")]
                self._sip.sendto("\r\n".join(["SIP/2.0 200 OK", *kept, "Content-Length: 0", "", ""]).encode(), there)
                if text.startswith("BYE"):
                    self.hung_up.set()


def _packets(samples: npt.NDArray[np.int16]) -> list[bytes]:
    said = encode_g711(samples[:len(samples) // PACKET * PACKET], "mu").tobytes()
    return [said[at:at + PACKET] for at in range(0, len(said), PACKET)]


@contextlib.contextmanager
def calling(uri: str, *, says: npt.NDArray[np.int16] = _TONE) -> Iterator[BarePhone]:
    phone = BarePhone(uri, says=says)
    try:
        yield phone
    finally:
        phone.hang_up()
