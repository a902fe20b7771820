"""What an empty database is given: the tables, the first project, the first key."""

from __future__ import annotations

from pathlib import Path

from api.embedded.state import write_private
from api.keys.service import make_operator_key
from migrations.upgrade import upgrade
from models.api_key import find_key
from models.errors import Unauthorized
from models.session import make_engine, session_factory

__all__ = ["first_key", "upgrade"]

FIRST_KEY = "first key"


def first_key(url: str, path: Path) -> str:
    """The API key kept in `path`, with every scope; made anew when this database does not know it."""
    engine = make_engine(url)
    try:
        with session_factory(engine).begin() as session:
            if path.exists():
                token = path.read_text().strip()
                try:
                    find_key(session, token)
                except Unauthorized:
                    pass
                else:
                    return token
            token = make_operator_key(session, FIRST_KEY)
            # Before the commit: a file without its key is made anew, a key without its file is lost.
            write_private(path, token)
        return token
    finally:
        engine.dispose()
