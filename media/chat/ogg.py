"""Opus packets in Ogg pages, as a stream of bytes both ways (RFC 3533, RFC 7845; pure).

FFmpeg's own demuxer wants a file that it can wait for and reads ahead to guess what is in it, and its muxer keeps a
page until the next one is there; here each byte counts when it comes, and each packet leaves with its page.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<4sBBqIIIB")  # capture pattern, version, flags, granule, serial, sequence, checksum, segments
_CONTINUED, _FIRST = 1, 2
MOST_SEGMENTS = 255
PACKET_BYTES = 8192  # no packet of mono speech is larger: 120 ms at 510 kbit/s
PRE_SKIP = 312  # samples at 48 kHz that the encoder looks ahead, with low delay


class BadOgg(ValueError):
    """These bytes aren't Ogg pages of one Opus stream; the text says what is wrong."""


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
        found.append(value)
    return tuple(found)


_TABLE = _table()


def checksum(page: bytes) -> int:
    """Of a page whose own checksum is 0."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value


class OggReader:
    """Bytes as they come -> Opus packets. A stream may begin anew; what follows a BadOgg isn't read any more."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._packet = bytearray()  # one that goes on in the next page
        self._headers = 2  # that still come before sound

    def push(self, data: bytes) -> list[bytes]:
        """The packets that `data` completes; raises BadOgg."""
        self._bytes += data
        packets: list[bytes] = []
        while (size := self._page_size()) is not None:
            page = bytes(self._bytes[:size])
            del self._bytes[:size]
            packets += self._packets(page)
        return packets

    def _page_size(self) -> int | None:
        """Of the page that is whole; None while it isn't."""
        held = self._bytes
        if not b"OggS".startswith(held[:4]):
            raise BadOgg("where a page should begin is something else")
        if len(held) < HEADER.size or len(held) < HEADER.size + held[HEADER.size - 1]:
            return None
        size = HEADER.size + held[HEADER.size - 1] + sum(held[HEADER.size:HEADER.size + held[HEADER.size - 1]])
        return size if len(held) >= size else None

    def _packets(self, page: bytes) -> list[bytes]:
        _, version, flags, _, _, _, wanted, segments = HEADER.unpack_from(page)
        if version != 0 or checksum(page[:22] + bytes(4) + page[26:]) != wanted:
            raise BadOgg("a page's version or checksum is wrong")
        if flags & _FIRST:
            self._headers, self._packet = 2, bytearray()
        if bool(flags & _CONTINUED) is not bool(self._packet):
            raise BadOgg("a page is missing")
        packets: list[bytes] = []
        at = HEADER.size + segments
        for size in page[HEADER.size:at]:
            self._packet += page[at:at + size]
            at += size
            if len(self._packet) > PACKET_BYTES:
                raise BadOgg(f"a packet has more than {PACKET_BYTES} bytes")
            if size < 255:
                packets += self._whole(bytes(self._packet))
                self._packet.clear()
        return packets

    def _whole(self, packet: bytes) -> list[bytes]:
        """The stream's two headers tell nothing that is needed: Opus is decoded to mono at any rate."""
        if not self._headers:
            return [packet] if packet else []
        if not packet.startswith((b"OpusHead", b"OpusTags")[2 - self._headers]):
            raise BadOgg("it is no Opus stream")
        self._headers -= 1
        return []


class OggWriter:
    """Opus packets -> pages, each with one packet, so that it can leave at once."""

    def __init__(self, serial: int, rate: int) -> None:
        """`rate`, Hz, is told as that of the sound before it was encoded."""
        self._serial, self._sequence, self._granule = serial, 0, 0
        self._head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, PRE_SKIP, rate, 0, 0)

    def headers(self) -> bytes:
        """The two pages with which a stream begins."""
        vendor = b"tandem"
        tags = b"OpusTags" + struct.pack("<I", len(vendor)) + vendor + bytes(4)
        return self._page(self._head, _FIRST) + self._page(tags)

    def page(self, packet: bytes, samples: int) -> bytes:
        """`samples` at 48 kHz, which the packet holds."""
        self._granule += samples
        return self._page(packet)

    def _page(self, packet: bytes, flags: int = 0) -> bytes:
        if len(packet) >= 255 * MOST_SEGMENTS:
            raise ValueError(f"a packet of {len(packet)} bytes doesn't fit in a page")
        sizes = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        content = sizes + packet

        def header(check: int) -> bytes:
            return HEADER.pack(b"OggS", 0, flags, self._granule, self._serial, self._sequence, check, len(sizes))

        page = header(checksum(header(0) + content)) + content
        self._sequence += 1
        return page
