"""Rules by which calls are erased and redacted, and what was redacted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("calls", sa.Column("redaction_version", sa.BigInteger))
    op.create_table(
        "retention_versions",
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("rules", JSONB, nullable=False),
    )
    op.create_table(
        "redactions",
        sa.Column("call_id", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("found", sa.BigInteger, nullable=False),
        sa.Column("spans", JSONB, nullable=False),
        sa.Column("silenced_at", TIME),
    )


def downgrade() -> None:
    op.drop_table("redactions")
    op.drop_table("retention_versions")
    op.drop_column("calls", "redaction_version")
