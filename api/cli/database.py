"""What `titer db` does, straight in the database. It loads the service's libraries, unlike the commands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from obstore.exceptions import BaseError as StorageFault
from sqlalchemy.exc import SQLAlchemyError

from api.cli.connection import fail
from api.cli.optional import optional
from api.keys.service import make_operator_key
from api.seed.demo import seed_demo
from migrations.upgrade import upgrade
from models.errors import DomainError
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage


def bring_up_to_date() -> None:
    """Run the migrations that the database has not seen."""
    try:
        upgrade(Settings().database_url)
    except SQLAlchemyError as error:
        fail(f"The database could not be brought up to date ({type(error).__name__}): {error}")


def make_key(name: str, project: str) -> str:
    """Make a key with every scope; give its token."""
    engine = make_engine(Settings().database_url)
    try:
        with session_factory(engine).begin() as session:
            return make_operator_key(session, name, project)
    except DomainError as error:
        fail(error.message)
    except SQLAlchemyError as error:
        fail(f"The key could not be made ({type(error).__name__}). Was `titer db upgrade` run?")
    finally:
        engine.dispose()


def fill(state: Path, *, anyway: bool) -> Mapping[str, str]:
    """Write made-up data; give a token for each role.

    Args:
        state: the folder of `titer up`, whose database is taken where DATABASE_URL names none.
        anyway: even if there are jobs.
    """
    try:
        with _stores(state) as (url, storage_url):
            engine = make_engine(url)
            try:
                with session_factory(engine).begin() as session:
                    return seed_demo(session, Storage(storage_url), anyway=anyway).tokens
            finally:
                engine.dispose()
    except DomainError as error:
        fail(error.message)
    except SQLAlchemyError as error:
        fail(f"The data could not be written ({type(error).__name__}). Was `titer db upgrade` run?")
    except (OSError, StorageFault) as error:
        fail(f"The storage cannot be written to ({type(error).__name__}). STORAGE_URL names it.")


@contextmanager
def _stores(state: Path) -> Iterator[tuple[str, str]]:
    """Lend the URLs of the database and of the storage that are meant."""
    if os.environ.get("DATABASE_URL"):
        settings = Settings()
        yield settings.database_url, settings.storage_url
        return
    lending = optional("api.embedded.database", extra="embedded")
    errors = optional("api.embedded.process", extra="embedded")
    try:
        with lending.lend_database(state) as url:
            yield url, os.environ.get("STORAGE_URL") or (state.resolve() / "storage").as_uri()
    except errors.EmbeddedError as error:
        fail(str(error))
