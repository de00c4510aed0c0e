"""What can happen in a call: frozen events, and the envelope in which they travel to Postgres.

Events have one producer, the session in the bridge. An envelope's key (call, source, fence, sequence) makes
delivery at least once and effect exactly once; the sequence counts 1, 2, 3 … within (call, source, fence).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError


class EndReason(StrEnum):
    """Why a call ended, as users read it in its row."""

    CALLER_HUNG_UP = "caller_hung_up"
    CANCELLED = "cancelled"  # the caller gave up while it rang
    AGENT_HUNG_UP = "agent_hung_up"
    OPERATOR_HUNG_UP = "operator_hung_up"
    BUSY = "busy"  # all slots taken (486)
    NO_WORKER = "no_worker"  # no worker offers the model, or Redis can't be reached (503)
    OVERLOADED = "overloaded"  # this bridge takes no new calls (503)
    WORKER_LOST = "worker_lost"
    BRIDGE_LOST = "bridge_lost"  # the process that carried it died, or wasn't heard of any more
    MEDIA_LOST = "media_lost"
    SHUTDOWN = "shutdown"
    TRANSFERRED = "transferred"  # the caller was handed on, and talks on without us
    NO_ANSWER = "no_answer"  # of whom we called
    REJECTED = "rejected"  # by whom we called, or by our own lists
    FAILED = "failed"


class Speaker(StrEnum):
    AGENT = "agent"
    CALLER = "caller"
    OPERATOR = "operator"


Transport = Literal["sip", "webrtc", "chat"]  # phones, browsers, Moshi's own clients


@dataclass(frozen=True)
class CallReceived:
    """A call reached a bridge. `caller` and `callee` are addresses (SIP URIs), `reference` the Call-ID."""

    protocol: Transport
    direction: Literal["inbound", "outbound"]
    caller: str
    callee: str
    reference: str
    bridge: str
    agent: str
    kind: Literal["received"] = "received"


@dataclass(frozen=True)
class CallLeased:
    """A slot is ours: model, worker and its epoch."""

    model: str
    worker: str
    epoch: str
    kind: Literal["leased"] = "leased"


@dataclass(frozen=True)
class CallMoved:
    """The call went on at another worker, with the memory of its last `steps` steps."""

    worker_before: str
    worker: str
    why: str  # how the one before was lost
    steps: int
    seconds: float  # without a worker
    k: int  # the last frame before it
    kind: Literal["moved"] = "moved"


@dataclass(frozen=True)
class CallAnswered:
    """The call's clock starts: frame k begins k * 80 ms after this event's time."""

    codec: str
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True)
class Word:
    """A word in its frames, and when it was heard, in seconds since the answer."""

    text: str
    first_k: int
    last_k: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class UtteranceSpoken:
    """An utterance as far as it goes; kept by (call, speaker, first_k) and rewritten as it grows."""

    speaker: Speaker
    first_k: int
    last_k: int
    words: tuple[Word, ...]
    final: bool
    kind: Literal["utterance"] = "utterance"

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


# By which durations are counted: those below each and not below the one before, and at last the rest.
BINS_S = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.012, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05,
          0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8,
          0.9, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Measure:
    """A duration, or how often something happened: where there are no quantiles they are None, and `bins` (how many
    there were, by BINS_S) is empty."""

    name: str
    count: int
    total_s: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    bins: tuple[int, ...] = ()


# What is measured: of frames, from the caller's last sample to the agent's first (media/latency.py); of turns
# (media/turns.py); and what is only counted, `concealed` being the caller's 20 ms for which nothing came.
HOPS = ("bridge", "link", "wait", "step", "playout", "whole")
TURNS = ("response", "yield", "gap")
COUNTED = ("overlap", "interruption", "backchannel", "concealed")


@dataclass(frozen=True)
class CallMeasured:
    """All that is measured of a call so far; a later one takes its place."""

    measures: tuple[Measure, ...]
    kind: Literal["measured"] = "measured"


@dataclass(frozen=True)
class ControlTaken:
    """What somebody wanted of the call, and what became of it: it took effect in frames first_k to k."""

    id: str
    action: str
    text: str
    mute: bool
    by: str
    accepted_at: datetime  # with time zone
    outcome: str
    first_k: int
    k: int
    why: str
    kind: Literal["control"] = "control"


LineChange = Literal[
    "key",  # `text`: the key; `via`: rfc4733, info, or sound, where its tones are heard
    "held", "resumed",  # by `side`
    "sound_stopped", "sound_one_way", "sound_back",  # of the other side; one way: our sound doesn't arrive there
    "transfer",  # `text`: how it goes: whom, SIP status, words
    "ringing",  # of whom we call; `text`: early media, where sound comes before the answer
    "queued",  # all slots are taken: waits, at most so many seconds
    "answered_by",  # of whom we called; `text`: person or machine, `via`: by what it is told
    "broken",  # signs of a broken conversation (calls/signs.py); `text`: which
    "tone",  # a machine records from now on; `text`: by what it is told
]


@dataclass(frozen=True)
class LineNoted:
    """Something happened on the telephone line, in frame k of the call's clock."""

    what: LineChange
    side: Literal["local", "remote"]
    text: str
    via: str
    k: int
    kind: Literal["line"] = "line"


@dataclass(frozen=True)
class RecordingKept:
    """The call's sound can be had, after its end: heard on the left, said on the right, from the call's sample 0 on."""

    url: str  # or a file's path
    codec: Literal["flac", "opus"]
    seconds: float
    bytes: int
    lost_s: float  # that couldn't be written
    paused_s: float
    kind: Literal["recording"] = "recording"


@dataclass(frozen=True)
class CallEnded:
    """Nothing is said after it. `sip_status` is the final status sent or received, `q850` the cause in the telephone
    network's terms (calls/causes.py); frames count the call's clock."""

    reason: EndReason
    side: Literal["local", "remote"]
    sip_status: int | None
    detail: str
    frames: int
    frames_dropped: int
    frames_missing: int  # of the agent's: never came, or too late to be heard
    underruns: int
    q850: int | None = None
    kind: Literal["ended"] = "ended"


Event = (CallReceived | CallLeased | CallMoved | CallAnswered | UtteranceSpoken | CallMeasured | ControlTaken
         | LineNoted | CallEnded | RecordingKept)


class Series(NamedTuple):
    """Whose events count 1, 2, 3 …: a call, its source, and the fence of the lease they happened under."""

    call: str
    source: str
    fence: int


@dataclass(frozen=True)
class Envelope:
    call: str
    source: str  # the bridge process that speaks for the call
    fence: int
    sequence: int
    at: datetime  # with time zone
    event: Annotated[Event, Field(discriminator="kind")]

    @property
    def series(self) -> Series:
        return Series(self.call, self.source, self.fence)


class BadEvent(ValueError):
    """Bytes that are no envelope of ours."""


_ADAPTER: TypeAdapter[Envelope] = TypeAdapter(Envelope)


def encode(envelope: Envelope) -> bytes:
    return _ADAPTER.dump_json(envelope)


def decode(data: bytes) -> Envelope:
    """The envelope in `data`; raises BadEvent."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadEvent(f"{'.'.join(map(str, first['loc'])) or 'event'}: {first['msg']}") from None
