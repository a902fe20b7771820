"""The declarative base of every table: constraint names, identifiers and time stamps."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, MetaData
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

ID_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZabcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, length: int = 24, *, separator: str = "-") -> str:
    """Make an identifier such as `ftjob-4Kq…`: unguessable, and safe in a URL."""
    return f"{prefix}{separator}" + "".join(secrets.choice(ID_ALPHABET) for _ in range(length))


def utc_now() -> datetime:
    """Give the present moment with its zone; every stored time has one."""
    return datetime.now(UTC)


def unix(moment: datetime) -> int:
    """Give whole Unix seconds, as OpenAI's objects carry times."""
    return int(moment.timestamp())


class Base(DeclarativeBase):
    """Names every constraint by one convention, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
    }
