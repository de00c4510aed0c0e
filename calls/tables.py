"""What is kept of calls, as SQLAlchemy tables; `migrations/` makes them, `calls/store.py` alone reads and
writes them.

A `version` is [fence, sequence] of the event that a row's columns come from: PostgreSQL compares arrays
element by element, so a late or repeated event is one whose version isn't greater.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    Text,
    UniqueConstraint,
    desc,
    false,
)
from sqlalchemy import (
    text as sql,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Version = ARRAY(BigInteger)


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text, int: BigInteger, float: Double, datetime: DateTime(timezone=True)}


class Call(Base):
    """A call; columns whose event hasn't come yet are null. `received_at` is at first the earliest event's
    time."""

    __tablename__ = "calls"

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(Computed(
        "CASE WHEN ended_at IS NOT NULL THEN 'ended' WHEN answered_at IS NOT NULL THEN 'talking' "
        "WHEN worker IS NOT NULL THEN 'ready' ELSE 'ringing' END", persisted=True))
    received_at: Mapped[datetime]
    received_version: Mapped[list[int] | None] = mapped_column(Version)
    protocol: Mapped[str | None]
    direction: Mapped[str | None]
    caller: Mapped[str | None]
    callee: Mapped[str | None]
    reference: Mapped[str | None]
    bridge: Mapped[str | None]
    agent: Mapped[str | None]
    leased_version: Mapped[list[int] | None] = mapped_column(Version)
    model: Mapped[str | None]
    worker: Mapped[str | None]
    epoch: Mapped[str | None]
    fence: Mapped[int | None]
    answered_version: Mapped[list[int] | None] = mapped_column(Version)
    answered_at: Mapped[datetime | None]
    codec: Mapped[str | None]
    ended_version: Mapped[list[int] | None] = mapped_column(Version)
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None]
    ended_by: Mapped[str | None]  # local or remote
    sip_status: Mapped[int | None] = mapped_column(SmallInteger)
    end_detail: Mapped[str | None]
    frames: Mapped[int | None]
    frames_dropped: Mapped[int | None]
    frames_missing: Mapped[int | None]
    underruns: Mapped[int | None]
    q850: Mapped[int | None] = mapped_column(SmallInteger)
    redaction_version: Mapped[int | None]  # of the retention's rules that have seen it

    __table_args__ = (
        CheckConstraint("sip_status BETWEEN 100 AND 699", name="calls_sip_status"),
        CheckConstraint("frames >= 0 AND frames_dropped >= 0 AND frames_missing >= 0 AND underruns >= 0",
                        name="calls_counts"),
        Index("calls_by_time", desc("received_at"), desc("id")),
        Index("calls_running", "received_at", postgresql_where=sql("ended_at IS NULL")),
        Index("calls_by_caller", sql("trigrams(caller)"), postgresql_using="gin"),  # calls.searching.has_part
        Index("calls_by_callee", sql("trigrams(callee)"), postgresql_using="gin"),
    )


class Utterance(Base):
    """What one side said without a pause, as far as it goes."""

    __tablename__ = "utterances"

    id: Mapped[int] = mapped_column(primary_key=True)
    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"))
    speaker: Mapped[str]
    first_k: Mapped[int]
    last_k: Mapped[int]
    start_s: Mapped[float | None]  # null while it has no words
    end_s: Mapped[float | None]
    text: Mapped[str]
    final: Mapped[bool]
    version: Mapped[list[int]] = mapped_column(Version)
    tsv: Mapped[str] = mapped_column(TSVECTOR, Computed("to_tsvector('simple', text)", persisted=True))

    __table_args__ = (
        UniqueConstraint("call_id", "speaker", "first_k", name="utterances_key"),
        CheckConstraint("first_k >= 0 AND last_k >= first_k", name="utterances_frames"),
        Index("utterances_search", "tsv", postgresql_using="gin"),
    )


class Word(Base):
    """A word of an utterance, by its place in it; seconds count from the answer."""

    __tablename__ = "words"

    utterance_id: Mapped[int] = mapped_column(
        ForeignKey("utterances.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str]
    first_k: Mapped[int]
    last_k: Mapped[int]
    start_s: Mapped[float]
    end_s: Mapped[float]

    __table_args__ = (CheckConstraint("position >= 0", name="words_position"),)


class CallMeasure(Base):
    """A duration of a call, or how often something happened; names as in calls.events.CallMeasured."""

    __tablename__ = "measures"

    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]
    total_s: Mapped[float]
    p50_s: Mapped[float | None]
    p95_s: Mapped[float | None]
    p99_s: Mapped[float | None]
    bins: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))  # by calls.events.BINS_S
    version: Mapped[list[int]] = mapped_column(Version)

    __table_args__ = (CheckConstraint("count >= 0 AND total_s >= 0", name="measures_sizes"),)


class CallControl(Base):
    """What somebody wanted of a call, and what became of it."""

    __tablename__ = "controls"

    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    action: Mapped[str]
    text: Mapped[str]
    mute: Mapped[bool]
    by: Mapped[str]
    accepted_at: Mapped[datetime]
    outcome: Mapped[str]
    first_k: Mapped[int]
    k: Mapped[int]
    why: Mapped[str]
    version: Mapped[list[int]] = mapped_column(Version)

    __table_args__ = (CheckConstraint("first_k >= 0 AND k >= first_k", name="controls_frames"),)


class Move(Base):
    """A call went on at another worker; one row for each lease that it moved to."""

    __tablename__ = "moves"

    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    worker_before: Mapped[str]
    worker: Mapped[str]
    why: Mapped[str]
    steps: Mapped[int]
    seconds: Mapped[float]
    k: Mapped[int]
    version: Mapped[list[int]] = mapped_column(Version)

    __table_args__ = (CheckConstraint("steps >= 0 AND seconds >= 0", name="moves_sizes"),)


class TelephonyVersion(Base):
    """A version of the telephony document (calls/telephony.py), its passwords sealed."""

    __tablename__ = "telephony_versions"

    version: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    by: Mapped[str]
    document: Mapped[str]


class LineEvent(Base):
    """Something that happened on a call's telephone line, as in calls.events.LineNoted."""

    __tablename__ = "line_events"

    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    what: Mapped[str]
    side: Mapped[str]
    text: Mapped[str]
    via: Mapped[str]
    k: Mapped[int]


class Recording(Base):
    """A call's sound, two channels on the call's clock: heard on the left, said on the right."""

    __tablename__ = "recordings"

    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True)
    kept_at: Mapped[datetime]
    url: Mapped[str]  # or a file's path
    codec: Mapped[str]
    seconds: Mapped[float]
    bytes: Mapped[int]
    lost_s: Mapped[float]
    paused_s: Mapped[float]
    version: Mapped[list[int]] = mapped_column(Version)

    __table_args__ = (CheckConstraint("seconds >= 0 AND bytes >= 0 AND lost_s >= 0 AND paused_s >= 0",
                                      name="recordings_sizes"),)


class ErasedCall(Base):
    """A call that was erased: what still comes of it isn't kept. `url` is its recording, as long as there is one."""

    __tablename__ = "erased_calls"

    call_id: Mapped[str] = mapped_column(primary_key=True)
    erased_at: Mapped[datetime]
    url: Mapped[str | None]

    __table_args__ = (Index("erased_calls_with_sound", "erased_at", postgresql_where=sql("url IS NOT NULL")),)


class RetentionVersion(Base):
    """A version of the rules by which calls are erased and redacted (calls/retention.py)."""

    __tablename__ = "retention_versions"

    version: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    by: Mapped[str]
    rules: Mapped[dict[str, Any]] = mapped_column(JSONB)


class Redaction(Base):
    """Something in a call was redacted: `spans` are the seconds of its recording that are, or are to be, silent."""

    __tablename__ = "redactions"

    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[datetime]
    found: Mapped[int]
    spans: Mapped[list[list[float]]] = mapped_column(JSONB)
    silenced_at: Mapped[datetime | None]


class ApiKey(Base):
    """What a program shows to use the API; of its secret only a hash."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class Operator(Base):
    """Somebody who may use the dashboard; of their password only argon2's hash."""

    __tablename__ = "operators"

    name: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    second_factor: Mapped[bool] = mapped_column(server_default=false())
    totp: Mapped[str | None]  # sealed; while second_factor is false it waits to be confirmed
    totp_step: Mapped[int] = mapped_column(server_default="0")  # the newest whose code was used

    __table_args__ = (
        CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="operators_role"),
        CheckConstraint("NOT second_factor OR totp IS NOT NULL", name="operators_second_factor"),
    )


class RecoveryCode(Base):
    """With which an operator signs in once, without their phone; a hash of it."""

    __tablename__ = "recovery_codes"

    operator: Mapped[str] = mapped_column(ForeignKey("operators.name", ondelete="CASCADE"), primary_key=True)
    hash: Mapped[str] = mapped_column(primary_key=True)


class OperatorSession(Base):
    """A browser in which an operator has signed in; of its token only a hash."""

    __tablename__ = "sessions"

    hash: Mapped[str] = mapped_column(primary_key=True)
    operator: Mapped[str] = mapped_column(ForeignKey("operators.name", ondelete="CASCADE"))
    expires_at: Mapped[datetime]
    begun_at: Mapped[datetime]
    address: Mapped[str]
    browser: Mapped[str]

    __table_args__ = (Index("sessions_by_operator", "operator"),)


class AuditEntry(Base):
    """Something that somebody changed, heard, exported or said."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    who: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str]
    control: Mapped[str] = mapped_column(server_default="")  # of the call that is the subject


class AgentRow(Base):
    """An agent as operators have made it (calls.agents.Agent), in place of the settings' one of its name."""

    __tablename__ = "agents"

    name: Mapped[str] = mapped_column(primary_key=True)
    definition: Mapped[dict[str, Any]] = mapped_column(JSONB)
    changed_at: Mapped[datetime]


class NumberRow(Base):
    """Calls to this number or pattern reach this agent."""

    __tablename__ = "numbers"

    pattern: Mapped[str] = mapped_column(primary_key=True)
    agent: Mapped[str]


class ConfigurationVersion(Base):
    """How often agents and numbers were changed: one row, which each change locks."""

    __tablename__ = "configuration"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]

    __table_args__ = (CheckConstraint("id = 1", name="configuration_one_row"),)


class WebhookRow(Base):
    """Where a program wants to be told what happens in calls; its secrets are sealed (calls/sealing.py)."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    description: Mapped[str]
    enabled: Mapped[bool]
    disabled_why: Mapped[str]
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_until: Mapped[datetime | None]
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """Something that a webhook is told; once for each event."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[int] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_id: Mapped[str]
    type: Mapped[str]
    call_id: Mapped[str | None] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"))
    body: Mapped[str]
    created_at: Mapped[datetime]
    state: Mapped[str]
    attempts: Mapped[int] = mapped_column(SmallInteger)
    next_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("webhook_id", "event_id", name="webhook_deliveries_key"),
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="webhook_deliveries_state"),
        Index("webhook_deliveries_due", "next_at", postgresql_where=sql("state = 'pending'")),
        Index("webhook_deliveries_by_webhook", "webhook_id", desc("id")),
        Index("webhook_deliveries_by_call", "call_id"),
    )


class WebhookAttempt(Base):
    """How a delivery was tried."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[int] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime]
    status: Mapped[int | None] = mapped_column(SmallInteger)
    error: Mapped[str]
    seconds: Mapped[float]


class EventWatermark(Base):
    """Which events of a series are here: 1 to `sequence`, and those `ahead` of a gap."""

    __tablename__ = "event_watermarks"

    call_id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int]
    ahead: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))

    __table_args__ = (
        ForeignKeyConstraint(["call_id"], ["calls.id"], ondelete="CASCADE"),
        CheckConstraint("sequence >= 0", name="event_watermarks_sequence"),
    )
