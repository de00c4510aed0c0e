"""Which control an entry of the audit is of: what became of it stands in the call's timeline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audit", sa.Column("control", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("audit", "control")
