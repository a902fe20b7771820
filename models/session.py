"""Engines and sessions: one synchronous kind for both processes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

# Tables refer to one another by name: whoever opens a database knows them all.
import models.tables  # noqa: F401

SessionFactory = sessionmaker[Session]


def make_engine(url: str, *, pool_size: int = 10) -> Engine:
    """Open a pool to PostgreSQL."""
    return create_engine(
        _parse(url),
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=20,
        # A statement's parameters would follow its errors into the log: names, tags, key hashes.
        hide_parameters=True,
    )


def session_factory(engine: Engine) -> SessionFactory:
    """Make sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def psycopg_arguments(url: str) -> dict[str, Any]:
    """Give what psycopg's own `connect` takes for an address, for a connection apart from every pool."""
    parsed = _parse(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    return dict(arguments)


def _parse(url: str) -> URL:
    # A plain address is taken to mean psycopg 3, the one driver installed.
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            url = "postgresql+psycopg://" + url.removeprefix(plain)
    return make_url(url)
