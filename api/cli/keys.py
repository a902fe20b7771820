"""`titer keys`: API keys of every project, for operators."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.connection import Json, connected
from api.cli.output import AsJson, moment, print_facts, print_json, print_table
from models.scope import Scope

app = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")

DAY = 24 * 3600
KeyId = Annotated[str, typer.Argument(help="The key's id.")]


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
    user: Annotated[str | None, typer.Option(help="Who holds it; default: a program.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="It expires after these.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once."""
    connection = connected(context)
    body: Json = {
        "name": name,
        "project": project,
        "scopes": [word.value for word in scope or [Scope.CUSTOMER]],
        "user": user,
        "expires_in_seconds": None if days is None else days * DAY,
    }
    _show_once(connection.post("/keys", body), as_json=as_json)


@app.command("list")
def list_keys(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(help="One project's, by id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every key; the secrets are not kept."""
    connection = connected(context)
    answer = connection.every("/keys", project=project)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("ID", "NAME", "USER", "PROJECT", "SCOPES", "ENDS IN", "CREATED", "LAST USED", "ENDED"),
        (
            (
                key["id"],
                key["name"],
                key["user"] or "",
                key["project"]["name"],
                ", ".join(key["scopes"]),
                key["hint"],
                moment(key["created_at"]),
                moment(key["last_used_at"]),
                moment(key["revoked_at"] or key["expires_at"]),
            )
            for key in answer["data"]
        ),
    )


@app.command()
def rotate(
    context: typer.Context,
    key_id: KeyId,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="The old key works this much longer.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one that may do the same. The new one is shown once."""
    connection = connected(context)
    body: Json = {"grace_seconds": round(grace_hours * 3600)}
    _show_once(connection.post(f"/keys/{key_id}/rotate", body), as_json=as_json)


@app.command()
def revoke(context: typer.Context, key_id: KeyId, as_json: AsJson = False) -> None:
    """Revoke a key; it stops working at once."""
    connection = connected(context)
    key = connection.delete(f"/keys/{key_id}")
    print_json(key) if as_json else typer.echo(f"{key['id']} is revoked.")


def _show_once(key: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    print_facts(
        [
            ("key", key["key"]),
            ("id", key["id"]),
            ("project", f"{key['project']['name']} ({key['project']['id']})"),
            ("user", key["user"]),
            ("scopes", ", ".join(key["scopes"])),
            ("expires", moment(key["expires_at"])),
        ]
    )
