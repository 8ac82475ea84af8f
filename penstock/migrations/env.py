"""What Alembic runs: always over the connection that `penstock.store` has opened."""

from alembic import context

from penstock.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
