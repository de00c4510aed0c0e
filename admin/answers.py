"""What the API answers, as its OpenAPI document tells it: rows as they are kept, and pages of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from admin.charts import QUANTILES, histogram
from calls.api_keys import KeyRow, Scope
from calls.audit import Entry
from calls.causes import Outcome
from calls.controls import Result
from calls.events import Measure, Word
from calls.latencies import Carrier, Report, Slow, Spread
from calls.operators import OperatorRow, Role
from calls.reports import Latency
from calls.store import CallRow, ControlRow, LineRow, Match, MoveRow, RecordingRow

Next = str | None


@dataclass(frozen=True)
class ToldCall(CallRow):
    """A call's row, `why` it ended as a sentence for people, and the `outcome` of one that we made."""

    why: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class ListedCall(ToldCall):
    """A call of a list; `match` is the first utterance that has what was searched for."""

    match: Match | None = None


class Calls(BaseModel):
    """A page of calls, the newest first; `next` is the cursor of the one after it."""

    calls: tuple[ListedCall, ...]
    next: Next


class RunningCalls(BaseModel):
    calls: tuple[ToldCall, ...]


class Utterances(BaseModel):
    """A page of utterances that were found, those of the newest calls first."""

    utterances: tuple[Match, ...]
    next: Next


class Utterance(BaseModel):
    """What one side said; seconds count from the answer, `first_k` and `last_k` its frames of 80 ms."""

    speaker: str
    first_k: int
    last_k: int
    start_s: float | None
    end_s: float | None
    text: str
    final: bool
    words: tuple[Word, ...]


class WholeCall(BaseModel):
    """All that is kept of a call."""

    call: ToldCall
    utterances: tuple[Utterance, ...]
    controls: tuple[ControlRow, ...]
    moves: tuple[MoveRow, ...]
    line: tuple[LineRow, ...]
    measures: dict[str, Measure]
    recording: RecordingRow | None


class SpokenWord(BaseModel):
    speaker: str
    text: str
    first_k: int
    last_k: int
    start_s: float
    end_s: float


class Words(BaseModel):
    """Each word of a call, by time."""

    words: tuple[SpokenWord, ...]


class CallLatency(BaseModel):
    """What was measured of a call, by its name."""

    measures: dict[str, Measure]


class Latencies(BaseModel):
    """Of the last calls that were answered."""

    latency: tuple[Latency, ...]


class Quantiles(BaseModel):
    """Of `count` turns or frames; null where there are none."""

    count: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


class Bin(BaseModel):
    """How many took so long: `low_s` or more, and less than `high_s`, which is null in the last bin that there is."""

    low_s: float
    high_s: float | None
    count: int


class LatencyMoment(Quantiles):
    """A step of the period, which begins at `at`."""

    at: datetime
    calls: int


class LatencyCarried(Quantiles):
    """Calls of one transport, agent or worker."""

    by: Carrier
    name: str
    calls: int


class LatencyReport(Quantiles):
    """One measure of a period's calls, of the newest 20,000 at most: how often it took how long, its quantiles over
    time and by what carried it, the worst calls by their 95th percentile."""

    measure: str
    period: str
    protocol: str
    agent: str
    worker: str
    since: datetime
    until: datetime
    calls: int
    histogram: tuple[Bin, ...]
    over_time: tuple[LatencyMoment, ...]
    carried: tuple[LatencyCarried, ...]
    worst: tuple[Slow, ...]

    @classmethod
    def of(cls, report: Report) -> LatencyReport:
        drawn = histogram(report.spread)
        return cls(
            **asdict(report.wanted), **_quantiles(report.spread), since=report.since, until=report.until,
            calls=report.calls,
            histogram=tuple(Bin(low_s=bar.low_s, high_s=bar.high_s, count=bar.count)
                            for bar in (drawn.bars if drawn else ())),
            over_time=tuple(LatencyMoment(at=one.at, calls=one.calls, **_quantiles(one.spread))
                            for one in report.moments),
            carried=tuple(LatencyCarried(by=one.by, name=one.name, calls=one.calls, **_quantiles(one.spread))
                          for one in report.carried),
            worst=report.worst)


def _quantiles(spread: Spread) -> dict[str, Any]:
    return {"count": spread.count, **{f"{name}_s": spread.quantile(share) for name, share in QUANTILES.items()}}


class Given(BaseModel):
    """A control that was given, and what became of it, where that is known by then."""

    id: str
    result: Result | None


class Bridge(BaseModel):
    bridge: str
    protocol: str
    calls: int
    capacity: int


class Slots(BaseModel):
    slots: int
    used: int


class Worker(BaseModel):
    worker: str
    draining: bool
    models: dict[str, Slots]


class Fleet(BaseModel):
    """Bridges and workers that live now."""

    bridges: tuple[Bridge, ...]
    workers: tuple[Worker, ...]


class Keys(BaseModel):
    keys: tuple[KeyRow, ...]


class NewKey(BaseModel):
    """A key that was made; `key` is told this once."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    revoked_at: datetime | None
    key: str = Field(description="what the program shows")


class Operators(BaseModel):
    operators: tuple[OperatorRow, ...]


class NewOperator(BaseModel):
    name: str
    role: Role


class Entries(BaseModel):
    """A page of the audit, the newest first."""

    entries: tuple[Entry, ...]
    next: Next
