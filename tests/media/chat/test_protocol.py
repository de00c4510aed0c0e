from __future__ import annotations

import base64

import pytest

from calls.wire import SamplingSettings
from media.chat import protocol
from media.chat.protocol import BadRequest, read_request

KEY = "k" * 16


@pytest.mark.parametrize(("target", "authorization", "agent"), [
    (f"/api/chat?key={KEY}&agent=echo", "", "echo"),
    (f"/api/chat?worker_auth_id={KEY}", "", ""),
    ("/api/chat", f"Bearer {KEY}", ""),
    ("/api/chat", "Basic " + base64.b64encode(f"echo:{KEY}".encode()).decode(), "echo"),
])
def test_the_key_comes_by_what_each_client_can_give(target: str, authorization: str, agent: str) -> None:
    asked = read_request(target, authorization)
    assert (asked.path, asked.has(KEY), asked.agent) == (protocol.PATH, True, agent)


@pytest.mark.parametrize(("target", "authorization"), [
    ("/api/chat", ""), ("/api/chat?key=", ""), (f"/api/chat?key={KEY}k", ""), ("/api/chat", "Basic !"),
    ("/api/chat", f"Basic {KEY}"), ("/api/chat", "Bearer"), ("/api/chat?key=%ff%ff", ""),
])
def test_nothing_else_is_the_key(target: str, authorization: str) -> None:
    assert not read_request(target, authorization).has(KEY)


def test_the_rust_servers_parameters_are_ours() -> None:
    query = ("text_temperature=0.6&text_topk=30&audio_temperature=0.9&audio_topk=200&pad_mult=0&text_seed=7&"
             "audio_seed=8&repetition_penalty_context=64&repetition_penalty=1.1")
    asked = read_request(f"/api/chat?{query}", "")
    default = SamplingSettings(pad_bias=0.5, text_temperature=0.1)
    assert asked.sampling(default) == SamplingSettings(
        seed=7, text_temperature=0.6, text_top_k=30, audio_temperature=0.9, audio_top_k=200, pad_bias=0.5,
        repetition_penalty=1.1)


def test_a_wrong_parameter_is_named() -> None:
    with pytest.raises(BadRequest, match="text_temperature"):
        read_request("/api/chat?text_temperature=warm", "").sampling(SamplingSettings())


def test_messages_are_kyutais_bytes() -> None:
    assert protocol.HANDSHAKE == b"\x00" * 9
    assert protocol.audio(b"OggS") == b"\x01OggS"
    assert protocol.text("\u2581gr\u00fc\u00df") == b"\x02 gr\xc3\xbc\xc3\x9f"
    assert protocol.error("busy") == b"\x05busy"
