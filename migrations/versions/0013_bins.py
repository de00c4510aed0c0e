"""How often each duration of a call was so long."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("measures", sa.Column("bins", ARRAY(sa.Integer)))


def downgrade() -> None:
    op.drop_column("measures", "bins")
