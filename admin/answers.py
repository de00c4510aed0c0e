"""What the API answers, as its OpenAPI document tells it: rows as they are kept, and pages of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, Field

from calls.api_keys import KeyRow, Scope
from calls.audit import Entry
from calls.causes import Outcome
from calls.controls import Result
from calls.events import Measure, Word
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
