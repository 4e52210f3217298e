"""Alembic's entry: runs on the connection that `ca.store.migrate` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from ca.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
