from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls.events import (
    BadEvent,
    CallAnswered,
    CallEnded,
    CallLeased,
    CallReceived,
    Envelope,
    Event,
    UtteranceSpoken,
    Word,
    decode,
    encode,
)

AT = datetime(2026, 5, 4, 12, 30, 15, 123456, tzinfo=UTC)

texts = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**40)
seconds = st.floats(0, 1e5)
words = st.builds(Word, text=texts, first_k=counts, last_k=counts, start_s=seconds, end_s=seconds)
events = st.one_of(
    st.builds(CallReceived, caller=texts, callee=texts, reference=texts, bridge=texts, agent=texts),
    st.builds(CallLeased, model=texts, worker=texts, epoch=texts),
    st.builds(CallAnswered, codec=texts),
    st.builds(UtteranceSpoken, first_k=counts, last_k=counts, words=st.lists(words, max_size=3).map(tuple)),
    st.builds(CallEnded, detail=texts, frames=counts, frames_dropped=counts, frames_missing=counts,
              underruns=counts, sip_status=st.none() | st.integers(100, 699)),
)
times = st.datetimes(timezones=st.just(UTC) | st.just(timezone(timedelta(hours=5, minutes=30))))


@given(st.builds(Envelope, call=texts, source=texts, fence=counts, sequence=counts, at=times, event=events))
def test_what_is_encoded_is_read_back_as_it_was(envelope: Envelope) -> None:
    assert decode(encode(envelope)) == envelope


@pytest.mark.parametrize(("data", "said"), [
    (b"", "Invalid JSON"),
    (b"\xff\xfe", "Invalid JSON"),
    (b"[]", "event: Input should be an object"),
    (b'{"call": "c"}', "source"),
])
def test_bytes_that_are_no_event_are_refused_with_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(BadEvent, match=said):
        decode(data)


@pytest.mark.parametrize(("of", "instead", "said"), [
    (b'"kind":"answered"', b'"kind":"teleported"', "kind"),
    (b'"sequence":3', b'"sequence":"many"', "sequence"),
    (b'"codec":"PCMU"', b'"codec":7', "codec"),
])
def test_an_event_with_a_wrong_field_is_refused_by_its_name(of: bytes, instead: bytes, said: str) -> None:
    data = encode(Envelope("call", "bridge", 1, 3, AT, CallAnswered("PCMU")))
    assert of in data
    with pytest.raises(BadEvent, match=said):
        decode(data.replace(of, instead))


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    kinds = [kind.__dataclass_fields__["kind"].default for kind in Event.__args__]
    assert len(set(kinds)) == len(kinds)


def test_an_utterance_reads_as_its_words() -> None:
    spoken = tuple(Word(text, 0, 1, 0.0, 0.1) for text in ("good", "morning"))
    assert UtteranceSpoken("agent", 0, 3, spoken, False).text == "good morning"  # type: ignore[arg-type]
