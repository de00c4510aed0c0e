"""Calls that went on at another worker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "moves",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fence", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("worker_before", sa.Text, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("k", sa.BigInteger, nullable=False),
        sa.Column("version", ARRAY(sa.BigInteger), nullable=False),
        sa.CheckConstraint("steps >= 0 AND seconds >= 0", name="moves_sizes"),
    )


def downgrade() -> None:
    op.drop_table("moves")
