from __future__ import annotations

import contextlib
import io

import av
import numpy as np
import pytest
from chat_peer import RATE, decoded, ogg_messages
from hypothesis import given
from hypothesis import strategies as st

from media.chat.ogg import BadOgg, OggReader, OggWriter

TONE = np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE) * 0.3


@st.composite
def cut(draw: st.DrawFn) -> list[int]:
    return draw(st.lists(st.integers(1, 400), min_size=1, max_size=40))


@given(cut())
def test_ffmpegs_pages_give_their_packets_however_the_bytes_come(sizes: list[int]) -> None:
    whole = b"".join(ogg_messages(TONE[:9600], 480))
    with av.open(io.BytesIO(whole)) as container:
        wanted = [bytes(packet) for packet in container.demux() if packet.size]
    reader, got, at, turn = OggReader(), [], 0, 0
    while at < len(whole):
        got += reader.push(whole[at:at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    assert got == wanted
    assert len(got) >= 20


@given(st.lists(st.binary(min_size=1, max_size=1200), max_size=8))
def test_packets_come_back_from_their_pages(packets: list[bytes]) -> None:
    writer = OggWriter(7, RATE)
    pages = writer.headers() + b"".join(writer.page(packet, 960) for packet in packets)
    assert OggReader().push(pages) == packets


def test_ffmpeg_reads_our_pages() -> None:
    reader, writer = OggReader(), OggWriter(1, RATE)
    packets = reader.push(b"".join(ogg_messages(TONE, 480)))
    pages = writer.headers() + b"".join(writer.page(packet, 960) for packet in packets)
    heard = decoded(pages)
    assert len(heard) == pytest.approx(len(TONE), abs=RATE // 20)
    assert np.sqrt(np.mean(heard[RATE // 4:RATE // 2] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_a_page_leaves_with_its_packet() -> None:
    writer = OggWriter(1, RATE)
    writer.headers()
    reader = OggReader()
    reader.push(writer.headers())
    assert [reader.push(writer.page(bytes((n,)), 960)) for n in range(3)] == [[b"\0"], [b"\1"], [b"\2"]]


@pytest.mark.parametrize(("broken", "why"), [
    (lambda page: b"RIFF" + page, "something else"),
    (lambda page: page[:30] + bytes((page[30] ^ 1,)) + page[31:], "checksum"),
    (lambda page: page.replace(b"OpusHead", b"vorbis!!"), "checksum"),
])
def test_what_is_no_ogg_is_told_from_it(broken: object, why: str) -> None:
    page = OggWriter(1, RATE).headers()
    with pytest.raises(BadOgg, match=why):
        OggReader().push(broken(page))  # type: ignore[operator]


def test_a_stream_of_something_else_is_refused() -> None:
    writer = OggWriter(1, RATE)
    with pytest.raises(BadOgg, match="no Opus"):
        OggReader().push(writer.page(b"\x01vorbis", 0))


def test_a_packet_without_an_end_is_refused() -> None:
    writer = OggWriter(1, RATE)
    reader = OggReader()
    reader.push(writer.headers())
    with pytest.raises(BadOgg, match="more than"):
        reader.push(writer.page(bytes(20000), 960))


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data: bytes) -> None:
    reader, sound = OggReader(), OggWriter(1, RATE).headers()
    with contextlib.suppress(BadOgg):
        assert all(len(packet) <= len(data) for packet in reader.push(sound + data))
