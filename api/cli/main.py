"""The command `titer`: which commands there are, and how they find the service."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from api.cli import (
    audit,
    certify,
    evidence,
    files,
    jobs,
    keys,
    models,
    policies,
    projects,
    reviews,
    service,
    webhooks,
)
from api.cli.chat import chat
from api.cli.connection import Connection
from api.cli.evaluate import evaluate
from api.cli.paper import paper

app = typer.Typer(
    no_args_is_help=True,
    help="Fine-tuning as a service whose models stay safe.",
    pretty_exceptions_enable=False,
)


@app.callback()
def connect(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="TITER_URL", help="Where the service is.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TITER_API_KEY", help="Your key to it.")
    ] = None,
    state: Annotated[
        Path, typer.Option(envvar="TITER_STATE", help="The folder of `titer up`.")
    ] = Path(".titer"),
) -> None:
    """Remember how to find the service; a command that talks to it does so when it runs."""
    context.obj = partial(Connection.find, url, api_key, state)


app.add_typer(models.app, name="models")
models.app.command()(certify.certificate)
models.app.command()(evidence.report)
models.app.command()(evidence.export)
jobs.app.command()(evidence.risk)
app.command("verify")(evidence.check)
app.command()(jobs.align)
app.command()(evaluate)
app.command()(certify.certify)
app.command()(certify.drill)
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.command()(projects.usage)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(policies.app, name="policies")
app.add_typer(reviews.app, name="reviews")
app.add_typer(audit.app, name="audit")
app.command()(chat)
app.command()(service.up)
app.command()(service.demo)
app.command()(paper)
app.add_typer(service.database, name="db")
