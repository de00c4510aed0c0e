from __future__ import annotations

import pytest

from calls.causes import cause_in, in_words, outcome, q850
from calls.events import EndReason
from calls.line_words import line_in_words


@pytest.mark.parametrize(("reason", "status", "cause"), [
    (EndReason.CALLER_HUNG_UP, 200, 16), (EndReason.BUSY, 486, 17), (EndReason.NO_ANSWER, 480, 19),
    (EndReason.REJECTED, 603, 21), (EndReason.REJECTED, 403, 21), (EndReason.REJECTED, 404, 1),
    (EndReason.FAILED, 404, 1), (EndReason.FAILED, 503, 41), (EndReason.FAILED, None, 127),
    (EndReason.NO_WORKER, 503, 41), (EndReason.OVERLOADED, 503, 42),
])
def test_ends_have_a_cause_in_the_networks_terms(reason: EndReason, status: int | None, cause: int) -> None:
    assert q850(reason, status) == cause


@pytest.mark.parametrize(("message", "cause"), [
    ("BYE x\r\nReason: Q.850;cause=16;text=\"Normal\"\r\n", 16), ("reason:SIP;cause=486, Q.850 ; cause = 17\r\n", 17),
    ("Reason: SIP;cause=486\r\n", None), ("Reason: Q.850;cause=0\r\n", None), ("Reason: Q.850;cause=999\r\n", None),
    ("To: x\r\n", None),
])
def test_the_other_sides_cause_is_read_from_its_reason_header(message: str, cause: int | None) -> None:
    assert cause_in(message) == cause


def test_an_end_is_told_in_a_sentence() -> None:
    assert in_words("busy", "486 Busy Here", 486, 17) == "Busy: 486 Busy Here (SIP 486, Q.850 17)."
    assert in_words("caller_hung_up", "", 200, 16) == "The other side hung up (Q.850 16)."
    assert in_words(None, None, None, None) == ""


@pytest.mark.parametrize(("answered", "reason", "told"), [
    (False, None, "ringing"), (True, None, "answered"), (True, "failed", "answered"), (False, "busy", "busy"),
    (False, "no_answer", "no_answer"), (False, "rejected", "rejected"), (False, "failed", "failed"),
    (False, "no_worker", "failed"),
])
def test_what_became_of_a_call_that_we_made(answered: bool, reason: str | None, told: str) -> None:
    assert outcome(answered, reason) == told


def test_what_happens_on_the_line_is_told_in_words() -> None:
    assert line_in_words("key", "remote", "5", "rfc4733") == "pressed 5 (rfc4733)"
    assert line_in_words("ringing", "remote", "early media", "") == "rings, with early media"
    assert line_in_words("transfer", "remote", "sip:a@b: 200 OK", "refer") == "transfer by refer to sip:a@b: 200 OK"
    assert line_in_words("new_thing", "remote", "x", "") == "new thing: x"
