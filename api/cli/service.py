"""`titer up`, `titer demo` and `titer db`: the service itself, not its API.

What they start needs optional packages, so it is imported when it is asked for and not before.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from obstore.exceptions import BaseError as StorageFault
from sqlalchemy.exc import SQLAlchemyError

from api.cli.connection import fail
from api.cli.output import print_facts
from api.keys.service import FIRST_PROJECT, make_operator_key
from api.seed.demo import seed_demo
from migrations.upgrade import upgrade as upgrade_database
from models.errors import DomainError
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage

database = typer.Typer(no_args_is_help=True, help="Look after the database.")


def up(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Where the API listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    run_up = _optional("api.embedded.up", extra="embedded").run_up
    raise typer.Exit(run_up(_state(context), host=host, port=port))


def demo(
    context: typer.Context,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of every job.")] = 0,
) -> None:
    """Run the main job here: align, fine-tune, measure, decide."""
    module = _optional("api.cli.demo", extra="demo,embedded,worker")
    errors = _optional("api.embedded.process", extra="embedded")
    try:
        module.demo(_state(context), seed=seed)
    except (module.DemoFailed, errors.EmbeddedError) as error:
        fail(str(error))


@database.command("upgrade")
def upgrade() -> None:
    """Bring the database that DATABASE_URL names up to date."""
    try:
        upgrade_database(Settings().database_url)
    except SQLAlchemyError as error:
        fail(f"The database could not be brought up to date ({type(error).__name__}): {error}")
    typer.echo("The database is up to date.")


@database.command("create-key")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[str, typer.Option(help="A project's name or id.")] = FIRST_PROJECT,
) -> None:
    """Make a key with every scope, straight in the database: the first one, or when all were lost.

    Prints the key alone, so that a script may keep it. It is shown once.
    """
    engine = make_engine(Settings().database_url)
    try:
        with session_factory(engine).begin() as session:
            token = make_operator_key(session, name, project)
    except DomainError as error:
        fail(error.message)
    except SQLAlchemyError as error:
        fail(f"The key could not be made ({type(error).__name__}). Was `titer db upgrade` run?")
    finally:
        engine.dispose()
    typer.echo(token)


@database.command("seed")
def seed(
    context: typer.Context,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Even if there are jobs: made-up ones join them.")
    ] = False,
) -> None:
    """Fill the database with made-up tenants, jobs, models and workers, to look at the dashboard.

    The database is the one that DATABASE_URL names, or else that of `titer up`, which may be running or not.
    Nothing is trained, and there are no models to download. Prints keys to sign in with, one for each role.
    """
    try:
        with _stores(context) as (url, storage_url):
            engine = make_engine(url)
            try:
                with session_factory(engine).begin() as session:
                    demo = seed_demo(session, Storage(storage_url), anyway=anyway)
            finally:
                engine.dispose()
    except DomainError as error:
        fail(error.message)
    except SQLAlchemyError as error:
        fail(f"The data could not be written ({type(error).__name__}). Was `titer db upgrade` run?")
    except (OSError, StorageFault) as error:
        fail(f"The storage cannot be written to ({type(error).__name__}). STORAGE_URL names it.")
    print_facts(demo.tokens.items())


@contextmanager
def _stores(context: typer.Context) -> Iterator[tuple[str, str]]:
    """Lend the URLs of the database and of the storage that are meant."""
    if os.environ.get("DATABASE_URL"):
        settings = Settings()
        yield settings.database_url, settings.storage_url
        return
    lending = _optional("api.embedded.database", extra="embedded")
    errors = _optional("api.embedded.process", extra="embedded")
    try:
        state = _state(context)
        with lending.lend_database(state) as url:
            yield url, os.environ.get("STORAGE_URL") or (state.resolve() / "storage").as_uri()
    except errors.EmbeddedError as error:
        fail(str(error))


def _state(context: typer.Context) -> Path:
    root = context.find_root()
    state: Path = root.params["state"]
    return state


def _optional(module: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        fail(f"The package {error.name!r} is missing: pip install 'titer[{extra}]'.")
