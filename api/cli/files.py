"""`titer files`: data sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import connected
from api.cli.output import AsJson, moment, print_facts, print_json, print_table

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

app = typer.Typer(no_args_is_help=True, help="Upload and list data sets.")


def _seconds(text: str) -> int:
    """Read 3600, 90m, 12h or 7d."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 12h, 7d or 3600")
    return int(found[1]) * UNITS[found[2] or "s"]


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A JSON Lines file.")],
    life_seconds: Annotated[
        int | None,
        typer.Option(
            "--expires-after",
            metavar="TIME",
            parser=_seconds,
            help="Time until it is deleted, from an hour to 30 days: 12h, 7d, or seconds; else never.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a data set; every row is checked, and each faulty one named."""
    connection = connected(context)
    file = connection.upload(path, "fine-tune", life_seconds=life_seconds)
    if as_json:
        print_json(file)
        return
    print_facts(
        [
            ("file", file["id"]),
            ("rows", str(file["rows"])),
            ("bytes", str(file["bytes"])),
            ("expires", moment(file["expires_at"])),
        ]
    )


@app.command("list")
def list_files(context: typer.Context, as_json: AsJson = False) -> None:
    """List the project's files, newest first."""
    connection = connected(context)
    answer = connection.get("/files")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("FILE", "NAME", "PURPOSE", "ROWS", "BYTES", "CREATED", "EXPIRES"),
        (
            (
                file["id"],
                file["filename"],
                file["purpose"],
                str(file["rows"] or ""),
                str(file["bytes"]),
                moment(file["created_at"]),
                moment(file["expires_at"]),
            )
            for file in answer["data"]
        ),
    )
