"""`titer webhooks`: who is told when jobs end and models are decided on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from api.cli.connection import Json, connected
from api.cli.output import AsJson, moment, print_facts, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Be told over HTTPS when something happens.")

PATH = "/webhook_endpoints"
SAMPLE = "fine_tuning.job.succeeded"
EndpointId = Annotated[str, typer.Argument(help="The endpoint's id.")]
STYLES = {"delivered": "green", "failed": "red", "pending": "yellow"}


@app.command()
def create(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where events are sent to.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="An event's type; may be repeated. By default all of them."),
    ] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "webhook",
    all_projects: Annotated[
        bool, typer.Option("--all-projects", help="Be told of every project's events; for staff.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register an endpoint. Its signing secret is shown once."""
    connection = connected(context)
    types = event or connection.get("/webhook_event_types")["data"]
    body: Json = {
        "name": name,
        "url": url,
        "event_types": types,
        "all_projects": all_projects or None,
    }
    _show_secret(connection.post(PATH, body), as_json=as_json)


@app.command("list")
def list_endpoints(context: typer.Context, as_json: AsJson = False) -> None:
    """List endpoints."""
    answer = connected(context).get(PATH, limit=100)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("ID", "NAME", "URL", "EVENTS", "OF", "STATE", "CREATED"),
        (
            (
                endpoint["id"],
                endpoint["name"],
                endpoint["url"],
                ", ".join(endpoint["event_types"]),
                "all projects" if endpoint["all_projects"] else "this project",
                _state(endpoint),
                moment(endpoint["created_at"]),
            )
            for endpoint in answer["data"]
        ),
    )


@app.command()
def delete(context: typer.Context, endpoint_id: EndpointId) -> None:
    """Delete an endpoint, with what was still to be delivered to it."""
    deleted = connected(context).delete(f"{PATH}/{endpoint_id}")
    typer.echo(f"{deleted['id']} is deleted.")


@app.command()
def enable(context: typer.Context, endpoint_id: EndpointId) -> None:
    """Send to an endpoint again after it was disabled."""
    endpoint = connected(context).post(f"{PATH}/{endpoint_id}", {"enabled": True})
    typer.echo(f"{endpoint['id']} is enabled.")


@app.command()
def rotate(
    context: typer.Context,
    endpoint_id: EndpointId,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="For 24 hours sign with the old secret as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replace the signing secret. The new one is shown once."""
    body: Json = {"keep_old_secret_active_for_24_hours": keep_old}
    answer = connected(context).post(f"{PATH}/{endpoint_id}/rotate_secret", body)
    _show_secret(answer, as_json=as_json)


@app.command("test")
def send_test(
    context: typer.Context,
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="The type of the sample.")] = SAMPLE,
) -> None:
    """Send a sample now. The exit status says whether it was taken."""
    body: Json = {"event_type": event}
    status = connected(context).post(f"{PATH}/{endpoint_id}/test", body)["status_code"]
    typer.echo(f"The endpoint answered {status}.")
    if not 200 <= status < 300:
        raise typer.Exit(1)


@app.command()
def deliveries(
    context: typer.Context,
    endpoint_id: EndpointId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent to an endpoint and is to be, newest first."""
    answer = connected(context).get(f"{PATH}/{endpoint_id}/deliveries", limit=limit)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("ID", "EVENT", "STATUS", "ATTEMPTS", "ANSWER", "LAST", "NEXT"),
        (
            (
                delivery["id"],
                delivery["event_type"],
                Text(delivery["status"], style=STYLES.get(delivery["status"], "")),
                str(delivery["attempts"]),
                str(delivery["response_status"] or delivery["error"] or ""),
                moment(delivery["last_attempt_at"]),
                moment(delivery["next_attempt_at"]),
            )
            for delivery in answer["data"]
        ),
    )


@app.command()
def redeliver(
    context: typer.Context,
    endpoint_id: EndpointId,
    delivery_id: Annotated[str, typer.Argument(help="The delivery's id.")],
) -> None:
    """Deliver an event again, under the same id."""
    path = f"{PATH}/{endpoint_id}/deliveries/{delivery_id}/redeliver"
    delivery = connected(context).post(path)
    typer.echo(f"{delivery['id']} is {delivery['status']}.")


def _show_secret(endpoint: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(endpoint)
        return
    print_facts(
        [
            ("secret", endpoint["signing_secret"]),
            ("id", endpoint["id"]),
            ("url", endpoint["url"]),
            ("events", ", ".join(endpoint["event_types"])),
        ]
    )


def _state(endpoint: Json) -> Text:
    if endpoint["enabled"]:
        return Text("enabled", style="green")
    return Text(f"disabled: {endpoint['disabled_reason']}", style="red")
