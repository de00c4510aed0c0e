"""Calls are found by a part of an address: an index of all that is three characters long in it.

A function of our own, and not pg_trgm, which not every Postgres has: the embedded one hasn't.
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

INDEXES = {"calls_by_caller": "caller", "calls_by_callee": "callee"}


def upgrade() -> None:
    op.execute("""
        CREATE FUNCTION trigrams(given text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN (
            SELECT array_agg(DISTINCT substr(lower(given), place, 3))
            FROM generate_series(1, length(given) - 2) AS place)""")
    for name, column in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON calls USING gin (trigrams({column}))")
    op.execute("ANALYZE calls")  # how often each occurs is known from here on


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name)
    op.execute("DROP FUNCTION trigrams(text)")
