"""Operators' second factors and recovery codes; since when and from where their browsers are signed in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operators", sa.Column("second_factor", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("operators", sa.Column("totp", sa.Text))
    op.add_column("operators", sa.Column("totp_step", sa.BigInteger, nullable=False, server_default="0"))
    op.create_check_constraint("operators_second_factor", "operators", "NOT second_factor OR totp IS NOT NULL")
    op.create_table(
        "recovery_codes",
        sa.Column("operator", sa.Text, sa.ForeignKey("operators.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("hash", sa.Text, primary_key=True),
    )
    op.execute("DELETE FROM sessions")  # of which it isn't known; operators sign in again
    op.add_column("sessions", sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False))
    op.add_column("sessions", sa.Column("address", sa.Text, nullable=False))
    op.add_column("sessions", sa.Column("browser", sa.Text, nullable=False))


def downgrade() -> None:
    for column in ("browser", "address", "begun_at"):
        op.drop_column("sessions", column)
    op.drop_table("recovery_codes")
    op.drop_constraint("operators_second_factor", "operators")
    for column in ("totp_step", "totp", "second_factor"):
        op.drop_column("operators", column)
