"""`titer models`: bases, aligned bases and tuned models."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import Json, connected, quoted
from api.cli.jobs import EVALUATE, Follow, watch
from api.cli.output import (
    AsJson,
    console,
    gate,
    moment,
    print_facts,
    print_json,
    print_table,
    safety_facts,
)

app = typer.Typer(no_args_is_help=True, help="Register, list, show and decide on models.")


class Decision(StrEnum):
    """What a person can decide about a held model."""

    RELEASE = "release"
    REJECT = "reject"


@app.command()
def add(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder on the server, or a hub repository.")],
    safety_set: Annotated[str, typer.Option(help="A safety set's folder on the server.")],
    name: Annotated[str | None, typer.Option(help="Public name of the base.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a base model with the safety set that belongs to it."""
    connection = connected(context)
    body: Json = {
        "source": _absolute(source),
        "safety_set": _absolute(safety_set),
        "name": name,
        "revision": revision,
    }
    model = connection.post("/base_models", body)
    print_json(model) if as_json else _print_model(model)


@app.command("list")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models that this key may see."""
    connection = connected(context)
    answer = connection.get("/models")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("MODEL", "KIND", "GATE", "PARENT", "METHOD", "HS", "CREATED"),
        (
            (
                model["id"],
                model["kind"],
                gate(model["gate"]),
                model["parent"] or "",
                model["method"] or "",
                f"{model['safety']['harmful_score']['percent']:.1f}%" if model["safety"] else "",
                moment(model["created"]),
            )
            for model in answer["data"]
        ),
    )


@app.command()
def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name.")],
    as_json: AsJson = False,
) -> None:
    """Show one model with its lineage and safety."""
    connection = connected(context)
    found = connection.get(f"/models/{quoted(model)}")
    print_json(found) if as_json else _print_model(found)


@app.command()
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name.")],
    is_followed: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model anew, in a job. Its gate stays as it is."""
    connection = connected(context)
    job = connection.post(EVALUATE, {"model": model})
    print_json(job) if as_json else console().print(str(job["id"]))
    if is_followed:
        watch(connection, f"{EVALUATE}/{job['id']}")


@app.command()
def review(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A held model's name.")],
    decision: Annotated[Decision, typer.Argument(help="What to do with it.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the job's log.")],
    as_json: AsJson = False,
) -> None:
    """Release or reject a model that the gate holds for a person."""
    connection = connected(context)
    body: Json = {"decision": decision.value, "reason": reason}
    answer = connection.post(f"/models/{quoted(model)}/review", body)
    print_json(answer) if as_json else _print_model(answer["model"])


def _absolute(source: str) -> str:
    # The server's working folder is not ours; it runs on this machine if the folder is here.
    path = Path(source).expanduser()
    # Where we may not look the server perhaps may: unlike `Path.is_dir` this is false then.
    return str(path.resolve()) if os.path.isdir(path) else source


def _print_model(model: Json) -> None:
    safety = model["safety"] or {}
    source = model["source"] or {}
    print_facts(
        [
            ("model", model["id"]),
            ("kind", model["kind"]),
            ("gate", gate(model["gate"])),
            ("reasons", " ".join(model["gate_reasons"])),
            ("parent", model["parent"]),
            ("root", model["root"]),
            ("method", model["method"]),
            ("job", model["job"]),
            ("source", ", ".join(f"{name} {value}" for name, value in source.items())),
            ("hashes", ", ".join(f"{n} {h[:12]}" for n, h in model["data_hashes"].items())),
            *safety_facts(safety),
            ("created", moment(model["created"])),
        ]
    )
