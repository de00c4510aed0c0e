"""Calls, what was said in them, and how far each series of events has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TSVECTOR

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

VERSION = ARRAY(sa.BigInteger)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, sa.Computed(
            "CASE WHEN ended_at IS NOT NULL THEN 'ended' WHEN answered_at IS NOT NULL THEN 'talking' "
            "WHEN worker IS NOT NULL THEN 'ready' ELSE 'ringing' END", persisted=True), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("received_version", VERSION),
        sa.Column("protocol", sa.Text),
        sa.Column("direction", sa.Text),
        sa.Column("caller", sa.Text),
        sa.Column("callee", sa.Text),
        sa.Column("reference", sa.Text),
        sa.Column("bridge", sa.Text),
        sa.Column("agent", sa.Text),
        sa.Column("leased_version", VERSION),
        sa.Column("model", sa.Text),
        sa.Column("worker", sa.Text),
        sa.Column("epoch", sa.Text),
        sa.Column("fence", sa.BigInteger),
        sa.Column("answered_version", VERSION),
        sa.Column("answered_at", TIME),
        sa.Column("codec", sa.Text),
        sa.Column("ended_version", VERSION),
        sa.Column("ended_at", TIME),
        sa.Column("end_reason", sa.Text),
        sa.Column("ended_by", sa.Text),
        sa.Column("sip_status", sa.SmallInteger),
        sa.Column("end_detail", sa.Text),
        sa.Column("frames", sa.BigInteger),
        sa.Column("frames_dropped", sa.BigInteger),
        sa.Column("frames_missing", sa.BigInteger),
        sa.Column("underruns", sa.BigInteger),
        sa.CheckConstraint("sip_status BETWEEN 100 AND 699", name="calls_sip_status"),
        sa.CheckConstraint("frames >= 0 AND frames_dropped >= 0 AND frames_missing >= 0 AND underruns >= 0",
                           name="calls_counts"),
    )
    op.create_index("calls_by_time", "calls", [sa.desc("received_at"), sa.desc("id")])
    op.create_index("calls_running", "calls", ["received_at"], postgresql_where=sa.text("ended_at IS NULL"))

    op.create_table(
        "utterances",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), nullable=False),
        sa.Column("speaker", sa.Text, nullable=False),
        sa.Column("first_k", sa.BigInteger, nullable=False),
        sa.Column("last_k", sa.BigInteger, nullable=False),
        sa.Column("start_s", sa.Double),
        sa.Column("end_s", sa.Double),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("version", VERSION, nullable=False),
        sa.Column("tsv", TSVECTOR, sa.Computed("to_tsvector('simple', text)", persisted=True),
                  nullable=False),
        sa.UniqueConstraint("call_id", "speaker", "first_k", name="utterances_key"),
        sa.CheckConstraint("first_k >= 0 AND last_k >= first_k", name="utterances_frames"),
    )
    op.create_index("utterances_search", "utterances", ["tsv"], postgresql_using="gin")

    op.create_table(
        "words",
        sa.Column("utterance_id", sa.BigInteger, sa.ForeignKey("utterances.id", ondelete="CASCADE"),
                  primary_key=True, autoincrement=False),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("first_k", sa.BigInteger, nullable=False),
        sa.Column("last_k", sa.BigInteger, nullable=False),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("end_s", sa.Double, nullable=False),
        sa.CheckConstraint("position >= 0", name="words_position"),
    )

    op.create_table(
        "event_watermarks",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("fence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("ahead", ARRAY(sa.BigInteger), nullable=False),
        sa.CheckConstraint("sequence >= 0", name="event_watermarks_sequence"),
    )


def downgrade() -> None:
    for table in ("event_watermarks", "words", "utterances", "calls"):
        op.drop_table(table)
