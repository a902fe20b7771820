"""`titer keys`: API keys of every project, for operators."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.connection import Json, connected
from api.cli.output import AsJson, moment, print_facts, print_json, print_table
from models.api_key import Scope

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[
        str | None, typer.Option(help="A project's name (made if new) or id; default: your own.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="May be repeated; by default customer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once."""
    connection = connected(context)
    scopes = [word.value for word in scope or [Scope.CUSTOMER]]
    body: Json = {"name": name, "project": project, "scopes": scopes}
    key = connection.post("/keys", body)
    if as_json:
        print_json(key)
        return
    print_facts(
        [
            ("key", key["key"]),
            ("id", key["id"]),
            ("project", f"{key['project']['name']} ({key['project']['id']})"),
            ("scopes", ", ".join(key["scopes"])),
        ]
    )


@app.command("list")
def list_keys(context: typer.Context, as_json: AsJson = False) -> None:
    """List every key; the secrets are not kept."""
    connection = connected(context)
    answer = connection.get("/keys")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("ID", "NAME", "PROJECT", "SCOPES", "ENDS IN", "CREATED", "REVOKED"),
        (
            (
                key["id"],
                key["name"],
                key["project"]["name"],
                ", ".join(key["scopes"]),
                key["hint"],
                moment(key["created_at"]),
                moment(key["revoked_at"]),
            )
            for key in answer["data"]
        ),
    )


@app.command()
def revoke(
    context: typer.Context, key_id: Annotated[str, typer.Argument(help="The key's id.")]
) -> None:
    """Revoke a key; it stops working at once."""
    connection = connected(context)
    key = connection.delete(f"/keys/{key_id}")
    typer.echo(f"{key['id']} is revoked.")
