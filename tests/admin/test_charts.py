from __future__ import annotations

from datetime import UTC, datetime, timedelta

from admin.charts import LEAST_BARS, histogram, lines
from calls.events import BINS_S
from calls.latencies import Moment, Spread

AT = datetime(2026, 11, 30, tzinfo=UTC)


def _spread(**counts: int) -> Spread:
    """By place, as b3=2."""
    return Spread(tuple(counts.get(f"b{bin}", 0) for bin in range(len(BINS_S) + 1)))


def _moments(*spreads: Spread) -> list[Moment]:
    return [Moment(AT + timedelta(hours=at), 1, spread) for at, spread in enumerate(spreads)]


def test_bars_stand_from_the_first_to_the_last_that_there_is_as_high_as_they_are_many() -> None:
    drawn = histogram(_spread(b20=5, b31=20))
    assert drawn is not None
    assert (drawn.low_s, drawn.high_s, drawn.most) == (BINS_S[19], BINS_S[31], 20)
    assert len(drawn.bars) == 12
    assert [(bar.y, bar.height) for bar in (*drawn.bars[:2], drawn.bars[-1])] == [(75, 25), (100, 0), (0, 100)]
    assert drawn.bars[-1].x + drawn.bars[-1].width <= 100


def test_a_single_bar_has_empty_ones_beside_it_and_the_last_has_no_end() -> None:
    for bin in (0, 20, len(BINS_S)):
        drawn = histogram(_spread(**{f"b{bin}": 3}))
        assert drawn is not None
        assert len(drawn.bars) >= LEAST_BARS
        assert sum(bar.count for bar in drawn.bars) == 3
    assert drawn.high_s is None
    assert histogram(Spread()) is None


def test_lines_have_gaps_where_nothing_is_known_and_dots_where_one_stands_alone() -> None:
    some = _spread(b20=4)
    drawn = lines(_moments(some, some, Spread(), some), AT)
    assert drawn is not None
    assert [line.name for line in drawn.lines] == ["p50", "p95", "p99"]
    assert drawn.lines[0].path.count("M") == 2
    assert "M87.5" in drawn.lines[0].path
    assert drawn.top_s == 0.1
    assert lines(_moments(Spread(), Spread()), AT) is None
