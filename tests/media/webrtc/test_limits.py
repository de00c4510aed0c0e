from __future__ import annotations

from media.webrtc.limits import Bucket


def test_a_burst_is_taken_and_then_as_much_as_the_rate_allows() -> None:
    bucket = Bucket(rate=2, burst=3)
    assert [bucket.take(1, 10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1, 11.0) for _ in range(3)] == [True, True, False]


def test_what_is_not_used_adds_up_to_the_burst_alone() -> None:
    bucket = Bucket(rate=2, burst=3)
    assert bucket.take(3, 0.0)
    assert bucket.take(3, 1000.0)
    assert not bucket.take(1, 1000.0)


def test_what_is_too_much_is_not_taken() -> None:
    bucket = Bucket(rate=1, burst=3)
    assert not bucket.take(4, 0.0)
    assert bucket.take(3, 0.0)
