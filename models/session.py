"""Engines and sessions: one synchronous kind for both processes."""

from __future__ import annotations

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

SessionFactory = sessionmaker[Session]


def make_engine(url: str, *, pool_size: int = 10) -> Engine:
    """Open a pool to PostgreSQL.

    A plain `postgresql://` address is taken to mean psycopg 3, the one driver installed.
    """
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            url = "postgresql+psycopg://" + url.removeprefix(plain)
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=20,
        # A statement's parameters would follow its errors into the log: names, tags, key hashes.
        hide_parameters=True,
    )


def session_factory(engine: Engine) -> SessionFactory:
    """Make sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)
