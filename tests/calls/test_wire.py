from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls import wire
from calls.wire import (
    MAX_JSON_BYTES,
    Audio,
    Close,
    CloseReason,
    Control,
    Error,
    Follow,
    History,
    Leave,
    Open,
    Outcome,
    Ping,
    Ready,
    SamplingSettings,
    Step,
    StepLayout,
    Text,
    WireError,
    decode_from_bridge,
    decode_from_worker,
)

LAYOUT = StepLayout(generated_codebooks=3, caller_codebooks=2, pause_heads=4)

small = st.integers(0, 256)
frames = st.integers(0, 2**32 - 1)
tokens = st.integers(-2**31, 2**31 - 1)
codes = st.none() | st.integers(0, 65534)
floats = st.floats(width=32, allow_nan=False)
short_texts = st.text(st.characters(codec="utf-8"), max_size=40)
steps = st.builds(
    Step, k=frames, text=tokens, sampled_text=tokens, mode=st.integers(0, 255),
    agent_codes=st.tuples(codes, codes, codes), caller_codes=st.tuples(codes, codes), caller_text=tokens,
    pauses=st.tuples(floats, floats, floats, floats), text_entropy=floats, audio_entropy=floats,
    codebook_spread=floats,
    us_waited=frames, us_in_step=frames)
either_way = st.one_of(
    st.builds(Audio, k=frames, pcm=st.binary(max_size=200).map(lambda pcm: pcm + pcm)),
    st.builds(Error, code=short_texts, text=short_texts),
    st.builds(Ping, nonce=st.integers(0, 2**64 - 1)),
    st.builds(Close, reason=st.sampled_from(CloseReason)))
from_bridge = either_way | st.one_of(
    st.builds(Open, call=short_texts, lease=short_texts, sampling=st.builds(SamplingSettings)),
    st.builds(Control, id=short_texts, action=st.sampled_from(["speak", "hold", "say", "whisper", "release", "set"]),
              text=short_texts, mute=st.booleans(), sampling=st.none() | st.builds(SamplingSettings)),
    st.builds(Follow, step=steps, pcm=st.binary(max_size=200).map(lambda pcm: pcm + pcm)),
    st.builds(History, steps=st.lists(steps, max_size=3).map(tuple),
              control_state=st.dictionaries(short_texts, st.integers(), max_size=3)))
from_worker = either_way | steps | st.one_of(
    st.builds(Leave, reason=st.sampled_from(CloseReason)),
    st.builds(Ready, slot=small, model=short_texts, sample_rate=frames, frame_samples=frames,
              generated_codebooks=small, agent_codebooks=small, caller_codebooks=small, pause_heads=small,
              largest_delay=small, us_to_boundary=st.integers(0, 10**6)),
    st.builds(Text, k=frames, piece=short_texts, sampled=short_texts, word=st.none() | short_texts,
              first_k=st.none() | frames, last_k=st.none() | frames),
    st.builds(Outcome, id=short_texts, outcome=short_texts, first_k=frames, k=frames, why=short_texts))


@given(from_bridge)
def test_what_a_bridge_says_its_worker_understands(message: Any) -> None:
    assert decode_from_bridge(wire.encode(message, LAYOUT), LAYOUT) == message


@given(from_worker)
def test_what_a_worker_says_its_bridge_understands(message: Any) -> None:
    assert decode_from_worker(wire.encode(message, LAYOUT), LAYOUT) == message


@pytest.mark.parametrize("decode", [decode_from_bridge, decode_from_worker])
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_are_a_message_an_unknown_kind_or_a_wire_error(decode: Any, data: bytes) -> None:
    with suppress(WireError):
        message = decode(data, LAYOUT)
        assert message is None or type(message) in {
            Open, Ready, Audio, Text, Control, Outcome, Error, Ping, Step, History, Close, Leave, Follow}


@pytest.mark.parametrize("decode", [decode_from_bridge, decode_from_worker])
def test_an_unknown_kind_is_nothing_to_say(decode: Any) -> None:
    assert decode(bytes((200,)) + b"from another version") is None


def test_a_step_lies_on_the_wire_as_the_protocol_says() -> None:
    step = Step(7, 3, 0, 1, (1, None, 3), (4, 5), -1, (0.5, 0.25, 0.0, 1.0), 2.0, 1.5, 0.5, 100, 200)
    expected = struct.pack("<IiiBHHHHHifffffffII", 7, 3, 0, 1, 1, 65535, 3, 4, 5, -1,
                           0.5, 0.25, 0.0, 1.0, 2.0, 1.5, 0.5, 100, 200)
    assert wire.encode(step, LAYOUT) == bytes((10,)) + expected


def test_audio_is_a_little_endian_frame_number_and_samples() -> None:
    assert wire.encode(Audio(258, b"\x01\x00\xff\x7f")) == b"\x01\x02\x01\x00\x00\x01\x00\xff\x7f"


@pytest.mark.parametrize(("data", "said"), [
    (b"", "1 to"),
    (b"\x01\x00\x00", "no whole samples"),
    (b"\x01\x00\x00\x00\x00\x00", "no whole samples"),
    (b"\x06\x00", "8 bytes"),
    (b"\x0c\x63", "known reason"),
    (b"\x00{}", "open: call: Field required"),
    (b"\x00not json", "open: "),
    (b"\x03" + b"x" * (MAX_JSON_BYTES + 1), "over the 65536 allowed"),
    (b"\x0b\xff\xff\xff\xff", "doesn't hold the steps"),
    (b"\x0b\x00\x00\x00\x00[]", "control state: not a JSON object"),
])
def test_what_a_bridge_must_not_send_is_named(data: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode_from_bridge(data, LAYOUT)


def test_a_step_before_ready_is_an_error() -> None:
    step = Step(0, 3, 3, 0, (0, 0, 0), (0, 0), -1, (0.0,) * 4, 0.0, 0.0, 0.0, 0, 0)
    with pytest.raises(WireError, match="before ready"):
        decode_from_worker(wire.encode(step, LAYOUT))


def test_a_step_of_another_layout_is_an_error() -> None:
    step = Step(0, 3, 3, 0, (0,), (), -1, (), 0.0, 0.0, 0.0, 0, 0)
    with pytest.raises(WireError, match="a step has"):
        decode_from_worker(wire.encode(step, StepLayout(1, 0, 0)), LAYOUT)


@pytest.mark.parametrize("field", ["text_temperature", "audio_temperature", "repetition_penalty", "pad_bias"])
def test_sampling_that_isnt_a_number_in_range_is_refused(field: str) -> None:
    opening = Open("call", "token", SamplingSettings(**{field: 1e6}))
    with pytest.raises(WireError, match=f"sampling.{field}"):
        decode_from_bridge(wire.encode(opening))


def test_ready_tells_how_long_a_step_is() -> None:
    ready = Ready(0, "moshi", 24000, 1920, 16, 8, 8, 4, 1, 0)
    assert ready.layout == StepLayout(generated_codebooks=16, caller_codebooks=8, pause_heads=4)
