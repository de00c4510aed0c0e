"""Calls that were erased: what still comes of them isn't kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erased_calls",
        sa.Column("call_id", sa.Text, primary_key=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("url", sa.Text),
    )
    op.create_index("erased_calls_with_sound", "erased_calls", ["erased_at"],
                    postgresql_where=sa.text("url IS NOT NULL"))


def downgrade() -> None:
    op.drop_table("erased_calls")
