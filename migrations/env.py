"""Alembic's entry: runs the versions on the connection that `calls.store.upgrade` hands over, in its
transaction."""

from __future__ import annotations

from alembic import context

from calls.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
