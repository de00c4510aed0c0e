"""Permanent audio ports, lent to calls: the one place where pjsua2's clock thread is met.

Ports that came and went with their calls crashed the library after some hundred calls, so a pair for each call that
the build can carry is made once. Every 20 ms the clock thread asks each send port for a chunk, then gives each receive
port one; it does so for ever, as the send ports are connected to the null device too: a call on hold keeps its clock.

      caller's RTP ──▶ call's port ──▶ receive port ──▶ Crossing.received
      caller's RTP ◀── call's port ◀── send port    ◀── Crossing.wanted
                     null device ◀──┘
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pjsua2 as pj

from media.audio import BYTES_PER_SAMPLE, CHUNK_BYTES, CHUNK_S, SAMPLE_RATE, SILENT_CHUNK

Read = Callable[[pj.MediaFrame], bytes]
Write = Callable[[pj.MediaFrame, bytes], None]

_BEGIN_AND_END = ctypes.c_void_p * 2  # how libstdc++ lays a vector's first two words out
_BEGIN = ctypes.c_void_p


class Sound(Protocol):
    """What the clock thread talks to: a call's media.crossing.Crossing. Must be quick and never raise."""

    def wanted(self) -> bytes: ...
    def received(self, chunk: bytes | None) -> None: ...


class UnknownBuild(RuntimeError):
    """This build of pjsua2 keeps the bytes of a frame in a way that we don't know."""


def _read_bytes(frame: pj.MediaFrame) -> bytes:
    """The frame's bytes, straight from its vector: 2 us where `bytes(frame.buf)` takes 500."""
    begin, end = _BEGIN_AND_END.from_address(int(frame.buf.this))
    return ctypes.string_at(begin, end - begin) if begin and end else b""


def _write_bytes(frame: pj.MediaFrame, data: bytes) -> None:
    frame.buf.assign(len(data), 0)
    ctypes.memmove(_BEGIN.from_address(int(frame.buf.this)).value or 0, data, len(data))
    frame.type = pj.PJMEDIA_TYPE_AUDIO
    frame.size = len(data)


def _read_by_method(frame: pj.MediaFrame) -> bytes:
    return bytes(frame.buf.copy_to_bytearray())


def _write_by_method(frame: pj.MediaFrame, data: bytes) -> None:
    frame.buf.assign_from_bytes(data)
    frame.type = pj.PJMEDIA_TYPE_AUDIO
    frame.size = len(data)


def frame_access() -> tuple[Read, Write]:
    """How this build's frames are read and written, tried out against the slow way; raises UnknownBuild."""
    by_method = hasattr(pj.ByteVector, "copy_to_bytearray") and hasattr(pj.ByteVector, "assign_from_bytes")
    read, write = (_read_by_method, _write_by_method) if by_method else (_read_bytes, _write_bytes)
    for data in (b"", bytes(range(256)) * 5, SILENT_CHUNK):
        slowly_filled = pj.MediaFrame()
        for value in data:
            slowly_filled.buf.append(value)
        if read(slowly_filled) != data:
            raise UnknownBuild("pjsua2: the bytes of a frame can't be read in this build")
        if not data:
            continue
        filled = pj.MediaFrame()
        write(filled, data)
        if bytes(bytearray(filled.buf)) != data or filled.size != len(data):
            raise UnknownBuild("pjsua2: the bytes of a frame can't be written in this build")
    return read, write


def _stay_known() -> None:
    """From its first callback on this thread stays known to Python, as it else is forgotten after each one: to be made
    known anew, with three maps of memory, cost more than the callback itself."""
    ctypes.pythonapi.PyGILState_Ensure()  # and never released: the thread lives as long as the process


class _ReceivePort(pj.AudioMediaPort):  # type: ignore[misc]
    """What the caller says, on its way to whom the port is lent."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.sound: Sound | None = None
        self._read = read

    def onFrameReceived(self, frame: pj.MediaFrame) -> None:
        sound = self.sound
        if sound is not None:
            sound.received(self._read(frame))  # no bytes: silence


class _SendPort(pj.AudioMediaPort):  # type: ignore[misc]
    """What the caller hears."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.sound: Sound | None = None
        self._write = write
        self._called = False

    def onFrameRequested(self, frame: pj.MediaFrame) -> None:
        if not self._called:
            self._called = True
            _stay_known()
        sound = self.sound
        self._write(frame, SILENT_CHUNK if sound is None else sound.wanted())


@dataclass(frozen=True)
class PortPair:
    receive: _ReceivePort
    send: _SendPort

    def attach(self, sound: Sound) -> None:
        """Sound flows between the clock and this call from the next tick on."""
        self.receive.sound = sound
        self.send.sound = sound

    def detach(self) -> None:
        self.receive.sound = None
        self.send.sound = None

    def connect(self, media: pj.AudioMedia) -> None:
        """Both ways between a call's port and ours; again after each re-INVITE, which may have made a new one."""
        media.startTransmit(self.receive)
        self.send.startTransmit(media)

    def disconnect(self, media: pj.AudioMedia) -> None:
        media.stopTransmit(self.receive)
        self.send.stopTransmit(media)


class PortPool:
    """As many pairs as the build can carry calls. Made, and made use of, on a thread that pjlib knows."""

    def __init__(self, pairs: int, sink: pj.AudioMedia) -> None:
        """`sink` is the null device's port, which keeps the clock of every send port running."""
        read, write = frame_access()
        self._pairs = [PortPair(_port(_ReceivePort(read), f"receive-{n}"), _port(_SendPort(write), f"send-{n}"))
                       for n in range(pairs)]
        for pair in self._pairs:
            pair.send.startTransmit(sink)
        self._free = list(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def free(self) -> int:
        return len(self._free)

    def lend(self) -> PortPair:
        """A pair that nobody uses; raises IndexError when there is none."""
        return self._free.pop()

    def give_back(self, pair: PortPair) -> None:
        pair.detach()
        assert pair not in self._free
        self._free.append(pair)


def _port(port: pj.AudioMediaPort, name: str) -> pj.AudioMediaPort:
    form = pj.MediaFormatAudio()
    form.init(pj.PJMEDIA_FORMAT_PCM, SAMPLE_RATE, 1, round(CHUNK_S * 1e6), 8 * BYTES_PER_SAMPLE)
    port.createPort(name, form)
    assert port.getPortInfo().format.frameTimeUsec * SAMPLE_RATE * BYTES_PER_SAMPLE == CHUNK_BYTES * 10**6
    return port
