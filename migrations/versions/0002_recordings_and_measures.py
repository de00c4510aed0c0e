"""Where calls' recordings are kept, and what is measured of a call."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "recordings",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kept_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("codec", sa.Text, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("lost_s", sa.Double, nullable=False),
        sa.Column("paused_s", sa.Double, nullable=False),
        sa.Column("version", ARRAY(sa.BigInteger), nullable=False),
        sa.CheckConstraint("seconds >= 0 AND bytes >= 0 AND lost_s >= 0 AND paused_s >= 0", name="recordings_sizes"),
    )
    op.create_table(
        "measures",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("total_s", sa.Double, nullable=False),
        sa.Column("p50_s", sa.Double),
        sa.Column("p95_s", sa.Double),
        sa.Column("p99_s", sa.Double),
        sa.Column("version", ARRAY(sa.BigInteger), nullable=False),
        sa.CheckConstraint("count >= 0 AND total_s >= 0", name="measures_sizes"),
    )


def downgrade() -> None:
    op.drop_table("measures")
    op.drop_table("recordings")
