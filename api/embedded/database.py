"""The state folder's database: what an empty one is given, and lending it to a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from api.embedded.postgres import EmbeddedPostgres
from api.embedded.state import AlreadyRunning, StateLock, prepare, write_private
from api.keys.service import make_operator_key
from migrations.upgrade import upgrade
from models.api_key import find_key
from models.errors import Unauthorized
from models.session import make_engine, session_factory

__all__ = ["first_key", "lend_database", "upgrade"]

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


@contextmanager
def lend_database(state: Path) -> Iterator[str]:
    """Lend the URL of a state folder's database, up to date: the running service's, or one started for the while.

    Raises:
        EmbeddedError: the folder cannot be used, or PostgreSQL does not start.
    """
    state = prepare(state)
    server = EmbeddedPostgres(state)
    with ExitStack() as stack:
        try:
            stack.enter_context(StateLock(state))
        except AlreadyRunning:
            url = server.kept_address()
        else:
            url = server.start()
            stack.callback(server.stop)
            upgrade(url)
        yield url
