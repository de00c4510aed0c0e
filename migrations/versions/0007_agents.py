"""Agents, and the numbers that reach them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("definition", JSONB, nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "numbers",
        sa.Column("pattern", sa.Text, primary_key=True),
        sa.Column("agent", sa.Text, nullable=False),
    )
    op.create_table(
        "configuration",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="configuration_one_row"),
    )


def downgrade() -> None:
    op.drop_table("configuration")
    op.drop_table("numbers")
    op.drop_table("agents")
