from __future__ import annotations

import pjsua2 as pj
import pytest

from sip import port_pool
from sip.port_pool import UnknownBuild, frame_access


def test_the_bytes_of_a_frame_go_in_and_out_unchanged() -> None:
    read, write = frame_access()
    data = bytes(range(256)) * 3 + bytes(192)
    frame = pj.MediaFrame()
    write(frame, data)
    assert read(frame) == data == bytes(bytearray(frame.buf))
    assert (frame.type, frame.size) == (pj.PJMEDIA_TYPE_AUDIO, len(data))
    assert read(pj.MediaFrame()) == b""


def test_a_build_with_another_memory_layout_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_pool, "_read_bytes", lambda frame: b"\0" * 16)
    with pytest.raises(UnknownBuild, match="can't be read"):
        frame_access()
