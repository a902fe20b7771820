"""Alembic migrations, named by date and sentence."""
