"""Alembic's entry point: it runs on the connection and in the transaction that `rather.store` hands it."""

from alembic import context

from rather.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
