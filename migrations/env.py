"""Runs migrations against the database that the settings (or a caller's connection) name."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from models.session import make_engine
from models.settings import Settings
from models.tables import Base

# A migration that waits for a lock blocks every query behind it; better to fail and be run again.
LOCK_TIMEOUT = "10s"


def run(connection: Connection) -> None:
    """Run the chosen migrations in one transaction."""
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.config.get_main_option("sqlalchemy.url") or Settings().database_url
    with make_engine(url).begin() as opened:
        run(opened)
