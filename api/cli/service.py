"""`titer up`, `titer demo` and `titer db`: the service itself, not its API.

What they start takes seconds to import, and may need optional packages: it is imported when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import fail
from api.cli.optional import optional
from api.cli.output import print_facts

database = typer.Typer(no_args_is_help=True, help="Look after the database.")


def up(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Where the API listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    run_up = optional("api.embedded.up", extra="embedded").run_up
    raise typer.Exit(run_up(_state(context), host=host, port=port))


def demo(
    context: typer.Context,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of every job.")] = 0,
) -> None:
    """Run the main job here: align, fine-tune, measure, decide."""
    module = optional("api.cli.demo", extra="demo,embedded,worker")
    errors = optional("api.embedded.process", extra="embedded")
    try:
        module.demo(_state(context), seed=seed)
    except (module.DemoFailed, errors.EmbeddedError) as error:
        fail(str(error))


@database.command("upgrade")
def upgrade() -> None:
    """Bring the database that DATABASE_URL names up to date."""
    from api.cli.database import bring_up_to_date

    bring_up_to_date()
    typer.echo("The database is up to date.")


@database.command("create-key")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[str, typer.Option(help="A project's name or id.")] = "default",
) -> None:
    """Make a key with every scope, straight in the database: the first one, or when all were lost.

    Prints the key alone, so that a script may keep it. It is shown once.
    """
    from api.cli.database import make_key

    typer.echo(make_key(name, project))


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
    from api.cli.database import fill

    print_facts(fill(_state(context), anyway=anyway).items())


def _state(context: typer.Context) -> Path:
    root = context.find_root()
    state: Path = root.params["state"]
    return state
