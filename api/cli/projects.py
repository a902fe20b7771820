"""`titer projects` and `titer usage`: tenants, their limits, and what they used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from api.cli.connection import Connection, Json, connected
from api.cli.output import AsJson, moment, print_facts, print_json, print_table
from models.priority import Priority

app = typer.Typer(no_args_is_help=True, help="Make, list, limit and archive projects.")

PROJECTS = "/organization/projects"
USAGE = "/organization/usage/fine_tuning"
ProjectId = Annotated[str, typer.Argument(help="The project's id.")]
Limit = Annotated[int | None, typer.Option(min=-1, help="0: no limit. -1: the service's default.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is called.")],
    organization: Annotated[
        str | None, typer.Option(help="A name (made if new) or id; default: one of its own.")
    ] = None,
    priority: Annotated[Priority, typer.Option(help="Whose jobs come first.")] = Priority.NORMAL,
    as_json: AsJson = False,
) -> None:
    """Make a project. Make a key for it with `titer keys create --project`."""
    connection = connected(context)
    body: Json = {"name": name, "organization": organization, "priority": priority.value}
    _show(connection.post(PROJECTS, body), as_json=as_json)


@app.command("list")
def list_projects(
    context: typer.Context,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones as well.")] = False,
    search: Annotated[
        str | None, typer.Option(help="A part of its or its organization's name, or an id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List projects, newest first."""
    connection = connected(context)
    answer = connection.every(
        PROJECTS, include_archived="true" if archived else None, search=search
    )
    if as_json:
        print_json(answer)
        return
    print_table(
        ("ID", "NAME", "ORGANIZATION", "PRIORITY", "STATUS", "CREATED"),
        (
            (
                project["id"],
                project["name"],
                project["organization_name"],
                project["priority"],
                project["status"],
                moment(project["created_at"]),
            )
            for project in answer["data"]
        ),
    )


@app.command()
def archive(context: typer.Context, project_id: ProjectId, as_json: AsJson = False) -> None:
    """End a project: its keys stop working, its waiting jobs are cancelled, what it owns stays."""
    connection = connected(context)
    _show(connection.post(f"{PROJECTS}/{project_id}/archive"), as_json=as_json)


@app.command()
def quota(
    context: typer.Context,
    project_id: Annotated[
        str | None, typer.Argument(help="The project's id; default: your own.")
    ] = None,
    jobs_running: Limit = None,
    jobs_queued: Limit = None,
    bytes_stored: Limit = None,
    training_tokens_month: Limit = None,
    gpu_seconds_month: Limit = None,
    priority: Annotated[Priority | None, typer.Option(help="Whose jobs come first.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a project's limits and how much of them is used; set those that are given."""
    connection = connected(context)
    given = {
        "jobs_running": jobs_running,
        "jobs_queued": jobs_queued,
        "bytes_stored": bytes_stored,
        "training_tokens_month": training_tokens_month,
        "gpu_seconds_month": gpu_seconds_month,
    }
    limits = {
        name: None if limit == -1 else limit for name, limit in given.items() if limit is not None
    }
    if limits or priority:
        _set(connection, project_id, limits, priority)
    answer = connection.get("/organization/quotas", project_id=project_id)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("QUOTA", "USED", "LIMIT", ""),
        (
            (
                one["name"],
                f"{one['used']:,}",
                f"{one['limit']:,}" if one["limit"] else "none",
                "default" if one["is_default"] else "",
            )
            for one in answer["data"]
        ),
    )


def usage(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(help="One project's, by id.")] = None,
    months: Annotated[bool, typer.Option("--months", help="By month instead of day.")] = False,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="UTC; default: the last 31 days or 12 months."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report jobs, trained tokens, GPU seconds and stored bytes, by day or month and project."""
    connection = connected(context)
    asked: dict[str, str | int | None] = {
        "bucket_width": "1mo" if months else "1d",
        "start_time": int(since.replace(tzinfo=UTC).timestamp()) if since else None,
        "project_ids[]": project,
    }
    answer = connection.get(USAGE, **asked)
    while answer["has_more"]:
        following = connection.get(USAGE, page=answer["next_page"], **asked)
        answer = {**following, "data": answer["data"] + following["data"]}
    if as_json:
        print_json(answer)
        return
    print_table(
        ("FROM (UTC)", "PROJECT", "JOBS", "TOKENS", "GPU SECONDS", "BYTES"),
        (
            (
                datetime.fromtimestamp(bucket["start_time"], UTC).strftime("%Y-%m-%d"),
                result["project_id"],
                f"{result['jobs']:,}",
                f"{result['trained_tokens']:,}",
                f"{result['gpu_seconds']:,.0f}",
                f"{result['bytes']:,}",
            )
            for bucket in answer["data"]
            for result in bucket["results"]
        ),
    )


def _set(
    connection: Connection,
    project_id: str | None,
    limits: Json,
    priority: Priority | None,
) -> None:
    body: Json = {"quotas": limits, "priority": priority.value if priority else None}
    own = project_id or str(connection.get("/organization/quotas")["project_id"])
    connection.post(f"{PROJECTS}/{own}", body)


def _show(project: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(project)
        return
    print_facts(
        [
            ("id", project["id"]),
            ("name", project["name"]),
            ("organization", f"{project['organization_name']} ({project['organization_id']})"),
            ("priority", project["priority"]),
            ("status", project["status"]),
            ("archived", moment(project["archived_at"])),
        ]
    )
