"""`titer audit`: the audit log, to read, to export, and to check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.connection import Json, connected, fail
from api.cli.output import AsJson, moment, print_facts, print_json, print_table
from models.audit_chain import ChainReport, Head, check_chain

app = typer.Typer(no_args_is_help=True, help="Read, export and verify the audit log.")


@app.command("list")
def list_entries(
    context: typer.Context,
    action: Annotated[str | None, typer.Option(help="Such as policy.created.")] = None,
    subject: Annotated[str | None, typer.Option(help="Id of what was acted on.")] = None,
    project: Annotated[str | None, typer.Option(help="Id of the tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List entries, newest first."""
    answer = connected(context).get(
        "/audit", action=action, subject=subject, project=project, limit=limit
    )
    if as_json:
        print_json(answer)
        return
    print_table(
        ("NO", "WHEN", "WHO", "ACTION", "SUBJECT", "PROJECT", "REASON"),
        (
            (
                str(entry["position"]),
                moment(entry["created_at"]),
                entry["actor"]["name"],
                entry["action"],
                entry["subject"]["id"],
                entry["project_id"] or "",
                entry["reason"] or "",
            )
            for entry in answer["data"]
        ),
    )


@app.command()
def export(
    context: typer.Context,
    to: Annotated[Path | None, typer.Argument(help="A file; by default standard output.")] = None,
) -> None:
    """Write the whole log as JSON Lines, oldest first."""
    content = connected(context).download("/audit/export")
    if to is None:
        typer.echo(content, nl=False)
        return
    try:
        to.write_bytes(content)
    except OSError as error:
        fail(f"{to} cannot be written: {error.strerror}.")
    typer.echo(f"{content.count(chr(10).encode())} entries in {to}.")


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option(help="Check an export instead, without the service.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="POSITION:SHA256 that was noted earlier; must be in it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no entry was changed, taken out or put in between. A broken chain exits with status 1."""
    noted = _head(head)
    if file is not None:
        found = _shown(_check(file, noted))
    else:
        found = connected(context).get(
            "/audit/verify",
            position=noted.position if noted else None,
            sha256=noted.sha256 if noted else None,
        )
    if as_json:
        print_json(found)
    else:
        print_facts(
            [
                ("chain", "whole" if found["whole"] else "BROKEN"),
                ("fault", found["fault"]),
                ("entries", str(found["entries"])),
                ("head", f"{found['head']['position']}:{found['head']['sha256']}"),
            ]
        )
    if not found["whole"]:
        raise typer.Exit(1)


def _head(text: str | None) -> Head | None:
    if text is None:
        return None
    position, _, sha256 = text.partition(":")
    if not (position.isascii() and position.isdigit() and len(sha256) == 64):
        fail("A head is POSITION:SHA256, as `titer audit verify` prints it.")
    return Head(int(position), sha256.lower())


def _check(file: Path, noted: Head | None) -> ChainReport:
    try:
        with file.open(encoding="utf-8") as lines:
            return check_chain(_entries(lines), noted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        fail(f"{file} cannot be read as an export of the audit log.")


def _entries(lines: Iterator[str]) -> Iterator[tuple[dict[str, Any], str]]:
    for line in lines:
        entry = json.loads(line)
        sha256 = entry.pop("sha256")
        entry.pop("object", None)
        yield entry, sha256


def _shown(report: ChainReport) -> Json:
    return {
        "whole": report.is_whole,
        "entries": report.entries,
        "head": {"position": report.head.position, "sha256": report.head.sha256},
        "fault": report.fault,
    }
