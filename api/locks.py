"""Advisory locks of PostgreSQL: one transaction at a time for a name that has no row yet."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def lock_name(session: Session, *parts: str) -> None:
    """Wait for the name, and keep it until the transaction ends.

    Two names may share a number; then one waits for the other without need, which harms nothing.
    """
    # A NUL cannot be sent to PostgreSQL; the replacement only makes two odd names share a lock.
    name = "\x1f".join(parts).replace("\x00", "\ufffd")
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
