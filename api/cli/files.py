"""`titer files`: data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import connected
from api.cli.output import AsJson, moment, print_facts, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Upload and list data sets.")


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A JSON Lines file.")],
    as_json: AsJson = False,
) -> None:
    """Upload a data set; every row is checked, and each faulty one named."""
    connection = connected(context)
    file = connection.upload(path, "fine-tune")
    if as_json:
        print_json(file)
        return
    print_facts([("file", file["id"]), ("rows", str(file["rows"])), ("bytes", str(file["bytes"]))])


@app.command("list")
def list_files(context: typer.Context, as_json: AsJson = False) -> None:
    """List the project's files, newest first."""
    connection = connected(context)
    answer = connection.get("/files")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("FILE", "NAME", "PURPOSE", "ROWS", "BYTES", "CREATED"),
        (
            (
                file["id"],
                file["filename"],
                file["purpose"],
                str(file["rows"] or ""),
                str(file["bytes"]),
                moment(file["created_at"]),
            )
            for file in answer["data"]
        ),
    )
